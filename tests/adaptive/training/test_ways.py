"""Each way learns, and leaves alone what is not its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from adaptive.training.loop import Examined, Recipe, train, trained_state, validated  # noqa: E402 -- as above
from adaptive.training.packing import Place  # noqa: E402
from adaptive.training.scores import places_of  # noqa: E402
from adaptive.training.ways import LiteralQuestion, ReadOut, SoftTokens, Trainable, packed  # noqa: E402
from tests.adaptive.training.tiny import END, tiny_model, toy_groups  # noqa: E402

SEEN, KEPT_OUT = toy_groups(24), toy_groups(8, first="v")
QUESTION, WIN_OR_TIE, LOSS = (END, 3, 4, 5), (110, 111), (120,)


@pytest.fixture
def model() -> Any:
    return tiny_model()


def weights(model: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def learned(way: Trainable, recipe: Recipe) -> tuple[float, Examined]:
    """Return how much of the loss on unseen prompts is left after training."""
    before, *_ = validated(way, KEPT_OUT, recipe)
    found = train(way, SEEN, KEPT_OUT, recipe, state=None, every=12, tell=lambda *_: None)
    after, *_ = validated(way, KEPT_OUT, recipe)
    return after / before, found


def normalise(way: SoftTokens | ReadOut) -> None:
    with torch.no_grad():
        way.rows.fit_normaliser(torch.cat([way.states(group, places_of(group)) for group in SEEN]))


def unchanged(model: Any, before: dict[str, Any]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_soft_tokens_learn_with_their_rows_and_the_model_stays_as_it_is(model: Any) -> None:
    torch.manual_seed(0)
    way = SoftTokens(model, (3, 4, 5), rows=2)
    assert torch.equal(way.embeddings, model.model.embed_tokens.weight[[3, 4, 5]])
    normalise(way)
    before, start = weights(model), way.embeddings.detach().clone()
    left, _ = learned(way, Recipe(epochs=3.0, learning_rate=1e-2))
    assert left < 0.8
    assert unchanged(model, before)
    assert ((way.embeddings - start).abs() > 1e-4).all()
    assert trained_state(way).keys() == {
        "embeddings",
        *(f"rows.{each}" for each in ("weight", "bias", "mean", "spread")),
    }


def test_a_read_out_learns_and_the_model_stays_as_it_is(model: Any) -> None:
    torch.manual_seed(0)
    way = ReadOut(model, rows=2)
    normalise(way)
    before = weights(model)
    left, _ = learned(way, Recipe(epochs=3.0, learning_rate=1e-2))
    assert left < 0.8
    assert unchanged(model, before)


def test_a_read_out_computes_a_state_once(model: Any) -> None:
    way, group = ReadOut(model, rows=2), SEEN[0]
    places = places_of(group)
    first = way.states(group, places[:5])
    way._model = (None,)  # what is there needs no model
    assert torch.equal(way.states(group, places[1:3]), first[1:3])
    with pytest.raises(AttributeError):
        way.states(SEEN[1], places_of(SEEN[1]))


def test_a_read_out_keeps_the_states_of_all_cuts_of_a_group_that_was_computed(model: Any) -> None:
    answers = tuple(replace(answer, cuts=(1, 2, len(answer.token_ids))) for answer in SEEN[0].answers)
    way, group = ReadOut(model, rows=2), replace(SEEN[0], answers=answers)
    way.states(group, [Place(0, 1)])
    way._model = (None,)
    assert way.states(group, [Place(1, 2), Place(1, len(answers[1].token_ids))]).shape[0] == 2


def test_a_read_out_is_read_where_the_last_token_was_drawn(model: Any) -> None:
    group = SEEN[0]
    way, whole = ReadOut(model, rows=2), packed(group)
    with torch.no_grad():
        ids = torch.tensor([[*group.prompt_ids, *group.answers[1].token_ids[:2]]])
        own = model.model(input_ids=ids).last_hidden_state[0, -1]
    found = way.states(group, [Place(1, 3)])[0]
    assert whole.token_ids[whole.before(Place(1, 3))] == group.answers[1].token_ids[2]
    torch.testing.assert_close(found.float(), own, rtol=2e-3, atol=2e-3)  # kept in half precision


def lora(model: Any) -> Any:
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def test_the_literal_question_is_learned_by_adapters_alone(model: Any) -> None:
    adapted = lora(model)
    before = weights(adapted)
    way = LiteralQuestion(adapted, QUESTION, WIN_OR_TIE, LOSS, END, trained=True)
    state = trained_state(way)
    assert state
    assert all("lora_" in name for name in state)
    left, _ = learned(way, Recipe(epochs=3.0, learning_rate=1e-2))
    assert left < 0.8
    after = adapted.state_dict()
    for name, value in before.items():
        changes = "lora_" in name
        assert torch.equal(after[name], value) is not changes, name


def test_merged_adapters_answer_as_they_did_beside_the_model(model: Any) -> None:
    adapted = lora(model)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    group = KEPT_OUT[0]
    places = places_of(group)
    with torch.no_grad():
        beside = LiteralQuestion(adapted, QUESTION, WIN_OR_TIE, LOSS, END, trained=True).log_odds(group, places)
        merged = adapted.merge_and_unload()
        found = LiteralQuestion(merged, QUESTION, WIN_OR_TIE, LOSS, END, trained=False).log_odds(group, places)
    torch.testing.assert_close(found, beside, rtol=1e-3, atol=1e-3)


def test_the_literal_question_is_what_the_model_answers_to_the_whole_text(model: Any) -> None:
    group = KEPT_OUT[0]
    way = LiteralQuestion(model, QUESTION, WIN_OR_TIE, LOSS, END, trained=False)
    length = len(group.answers[1].token_ids)
    assert group.answers[1].token_ids[-1] == END
    with torch.no_grad():
        for place in (Place(0, 0), Place(1, 2), Place(1, length)):
            ids = list(group.answers[place.answer].token_ids[: place.tokens])
            if ids and ids[-1] == END:
                ids.pop()  # the question begins with it
            shares = model(torch.tensor([[*group.prompt_ids, *ids, *QUESTION]])).logits[0, -1].log_softmax(0)
            found = way.logits(group, [place])[0]
            torch.testing.assert_close(found, shares[[*WIN_OR_TIE, *LOSS]], rtol=1e-4, atol=1e-4)
            expected = shares[list(WIN_OR_TIE)].logsumexp(0) - shares[list(LOSS)].logsumexp(0)
            torch.testing.assert_close(way.log_odds(group, [place])[0], expected, rtol=1e-4, atol=1e-4)
