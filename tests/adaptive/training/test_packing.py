"""A packed group inside a model is the same as each answer, and each question, on its own."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from adaptive.training.frozen import Judged, load_model  # noqa: E402 -- there may be no torch
from adaptive.training.packing import Place, pack, question_mask, question_positions  # noqa: E402
from tests.adaptive.training.tiny import HIDDEN, tiny_checkpoint, tiny_model  # noqa: E402

PROMPT = (11, 12, 13)
ANSWERS = ((21, 22, 23, 24, 25), (31,), (), (41, 42, 43))
PLACES = (Place(0, 0), Place(0, 1), Place(0, 3), Place(0, 5), Place(1, 1), Place(2, 0), Place(3, 2), Place(3, 3))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def alone(model: Any, *ids: int) -> Any:
    """Return the last states of these tokens as an ordinary sequence."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def test_the_states_of_each_answer_are_those_of_a_sequence_of_its_own(model: Any) -> None:
    packed = pack(PROMPT, ANSWERS)
    states = Judged(model, packed).states
    assert packed.starts == (3, 8, 9, 9)
    for answer, start in zip(ANSWERS, packed.starts, strict=True):
        own = alone(model, *PROMPT, *answer)
        found = torch.cat([states[: packed.prompt], states[start : start + len(answer)]])
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


def test_answers_do_not_see_each_other(model: Any) -> None:
    states = Judged(model, pack(PROMPT, ANSWERS)).states
    others = Judged(model, pack(PROMPT, ((91, 92, 93, 94, 95), *ANSWERS[1:]))).states
    torch.testing.assert_close(states[8:], others[8:], rtol=0, atol=1e-6)
    assert not torch.allclose(states[3:8], others[3:8], atol=0.1)


def test_a_question_after_a_cut_sees_the_cut_answer_and_nothing_else(model: Any) -> None:
    question = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = Judged(model, pack(PROMPT, ANSWERS)).ask(PLACES, question)
        for place, state in zip(PLACES, found, strict=True):
            ids = torch.tensor([*PROMPT, *ANSWERS[place.answer][: place.tokens]])
            whole = torch.cat([model.model.embed_tokens(ids), question])
            own = model.model(inputs_embeds=whole[None]).last_hidden_state[0, -1]
            torch.testing.assert_close(state, own, rtol=1e-4, atol=1e-5)


def test_a_question_in_tokens_that_are_trained_has_a_gradient(model: Any) -> None:
    question = torch.randn(2, HIDDEN).requires_grad_()
    Judged(model, pack(PROMPT, ANSWERS)).ask(PLACES, question).sum().backward()
    assert question.grad is not None
    assert question.grad.abs().min() > 0


def test_the_states_have_a_gradient_where_it_is_asked_for() -> None:
    model = tiny_model().requires_grad_(requires_grad=True)
    assert not Judged(model, pack(PROMPT, ANSWERS)).states.requires_grad
    assert Judged(model, pack(PROMPT, ANSWERS), gradient=True).states.requires_grad


def test_a_place_is_before_the_next_token_and_was_produced_by_the_one_before_its_last() -> None:
    packed = pack(PROMPT, ANSWERS)
    # Two tokens of the first answer: the second of them at 4, which the logits at 3 produced.
    assert (packed.before(Place(0, 2)), packed.producer(Place(0, 2))) == (4, 3)
    # One token, which the prompt's last produced; and none, where the read-out has nothing better to be read at.
    assert (packed.before(Place(1, 1)), packed.producer(Place(1, 1))) == (8, 2)
    assert (packed.before(Place(3, 0)), packed.producer(Place(3, 0))) == (2, 2)
    assert packed.token_ids[packed.before(Place(3, 3))] == 43
    assert packed.token_ids[packed.producer(Place(3, 3))] == 42


def test_the_state_at_the_producer_is_what_the_last_token_was_drawn_from(model: Any) -> None:
    packed = pack(PROMPT, ANSWERS)
    states = Judged(model, packed).states
    for place in PLACES:
        ids = (*PROMPT, *ANSWERS[place.answer][: place.tokens])
        own = alone(model, *ids)[len(ids) - 2 if place.tokens else -1]
        torch.testing.assert_close(states[packed.producer(place)], own, rtol=1e-4, atol=1e-5)


def test_a_question_has_the_positions_after_its_cut() -> None:
    packed = pack(PROMPT, ANSWERS)
    assert question_positions(packed, (Place(0, 2), Place(2, 0)), 3).tolist() == [5, 6, 7, 3, 4, 5]
    mask = question_mask(packed, (Place(0, 2), Place(3, 1)), 2)
    assert mask.shape == (4, 12 + 4)
    assert mask[1].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 12, 13]
    assert mask[2].nonzero().flatten().tolist() == [0, 1, 2, 9, 14]


def test_a_prompt_has_tokens() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pack((), ANSWERS)


def test_a_checkpoint_is_loaded_frozen_in_the_number_format_that_is_asked_for(tmp_path: Any) -> None:
    loaded = load_model(tiny_checkpoint(tmp_path), device="cpu")
    assert loaded.dtype == torch.bfloat16
    assert not loaded.training
    assert not any(each.requires_grad for each in loaded.parameters())
    same = load_model(tmp_path, device="cpu", dtype=torch.float32)
    assert torch.equal(same.model.embed_tokens.weight, tiny_model().model.embed_tokens.weight)
