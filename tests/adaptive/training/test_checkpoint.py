"""New rows at the end of a vocabulary: nothing old changes, and they keep out of the way."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402 -- there may be no torch

from adaptive.training.build import build, clearance, question_score, read_out_score, sample_states  # noqa: E402
from adaptive.training.checkpoint import (  # noqa: E402
    BURIED,
    DEPTH,
    CheckpointError,
    NewRows,
    buried_rows,
    direction,
    extend,
    question_rows,
    read_out_rows,
    written,
)
from adaptive.training.frozen import load_model  # noqa: E402
from adaptive.training.scores import label_log_odds, places_of  # noqa: E402
from adaptive.training.ways import ReadOut, SoftTokens  # noqa: E402
from tests.adaptive.training.tiny import HIDDEN, VOCABULARY, tiny_checkpoint, tiny_model, toy_groups  # noqa: E402

WEIGHTS = "model.safetensors"
TEXT = (3, 4, 5, 6)
SEEN, UNSEEN = toy_groups(40), toy_groups(10, first="u")


def random_rows(*counts: int) -> NewRows:
    torch.manual_seed(5)
    soft, question, read_out = (torch.randn(count, HIDDEN) for count in counts)
    return NewRows(soft, torch.randn(counts[0], HIDDEN), question, read_out)


def trained(model: Any, *, rows: int = 2) -> tuple[SoftTokens, ReadOut]:
    """Return what has been trained, but for the training: its rows say something different about every answer."""
    torch.manual_seed(1)
    ways = SoftTokens(model, TEXT, rows=rows), ReadOut(model, rows=rows)
    with torch.no_grad():
        for way in ways:
            way.rows.fit_normaliser(torch.cat([way.states(group, places_of(group)) for group in SEEN]))
            way.rows.bias.normal_()
    return ways


def greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    found: list[int] = ids[0].tolist()
    return found


def ordinary_and_asked() -> tuple[Any, Any, Any]:
    """Return states as of a real model: one side far from nothing; the question's somewhere else. Unseen ones last."""
    source = torch.Generator().manual_seed(7)
    common, elsewhere = torch.randn(2, HIDDEN, generator=source)
    ordinary = 4 * common + torch.randn(600, HIDDEN, generator=source) * 0.5
    asked = 4 * elsewhere + torch.randn(300, HIDDEN, generator=source) * 0.5
    return ordinary[:400], asked, ordinary[400:]


@pytest.mark.parametrize("tied", [True, False])
def test_no_bit_of_an_old_row_changes(tmp_path: Path, *, tied: bool) -> None:
    source = tiny_checkpoint(tmp_path / "source", tied=tied)
    before = load_file(source / WEIGHTS)
    rows = random_rows(3, 4, 2)
    extend(source, tmp_path / "target", rows)
    after = load_file(tmp_path / "target" / WEIGHTS)
    assert ("lm_head.weight" in before) is not tied
    assert after.keys() == before.keys() | {"lm_head.weight"}
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    assert after[embeddings].shape == after[head].shape == (VOCABULARY + 9, HIDDEN)
    assert torch.equal(after[embeddings][:VOCABULARY], before[embeddings])
    assert torch.equal(after[head][:VOCABULARY], before.get(head, before[embeddings]))
    assert all(torch.equal(after[name], value) for name, value in before.items() if name not in {embeddings, head})
    assert torch.equal(after[embeddings][VOCABULARY : VOCABULARY + 3], rows.soft)
    assert torch.equal(after[head][VOCABULARY:], torch.cat([rows.soft_out, rows.question, rows.read_out]))
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert config["vocab_size"] == VOCABULARY + 9
    assert config["tie_word_embeddings"] is False
    old = json.loads((source / "config.json").read_text())
    changed = {name for name in config if config[name] != old.get(name)}
    assert changed <= {"vocab_size", "tie_word_embeddings"}


def test_the_rest_of_a_directory_comes_along(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    (source / "folder").mkdir()
    extend(source, tmp_path / "deep" / "target", random_rows(1, 2, 0))
    assert (tmp_path / "deep" / "target" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "deep" / "target" / "folder").exists()
    assert json.loads((source / "config.json").read_text())["vocab_size"] == VOCABULARY


def test_new_rows_have_the_number_format_of_the_old_ones(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_model().bfloat16().save_pretrained(source)
    extend(source, tmp_path / "target", random_rows(1, 2, 2))
    assert {value.dtype for value in load_file(tmp_path / "target" / WEIGHTS).values()} == {torch.bfloat16}


def test_the_extended_model_writes_what_the_original_writes(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    original = load_model(source, device="cpu", dtype=torch.float32)
    tokens, read_out = trained(original)
    rows = build(sample_states(original, SEEN, tokens), tokens, read_out)
    extend(source, tmp_path / "target", rows)
    extended = load_model(tmp_path / "target", device="cpu", dtype=torch.float32)
    assert extended.config.vocab_size == VOCABULARY + 4 + 4 + 4
    for group in UNSEEN:
        assert greedy(extended, group.prompt_ids) == greedy(original, group.prompt_ids)
        with torch.no_grad():
            ids = torch.tensor([group.prompt_ids])
            assert torch.equal(extended(ids).logits[..., :VOCABULARY], original(ids).logits)


def test_the_question_in_ids_is_the_question_that_was_trained(tmp_path: Path) -> None:
    """The soft tokens as ordinary tokens of the extended model, as an engine has them."""
    source = tiny_checkpoint(tmp_path / "source")
    original = load_model(source, device="cpu", dtype=torch.float32)
    tokens, read_out = trained(original)
    rows = build(sample_states(original, SEEN, tokens), tokens, read_out)
    extend(source, tmp_path / "target", rows)
    extended = load_model(tmp_path / "target", device="cpu", dtype=torch.float32)
    about = written(VOCABULARY, rows)
    group = UNSEEN[0]
    place = places_of(group)[2]
    ids = (*group.prompt_ids, *group.answers[place.answer].token_ids[: place.tokens], *about["suffix_ids"])
    with torch.no_grad():
        shares = extended(torch.tensor([ids])).logits[0, -1].log_softmax(0)
        win, loss = (shares[about[name]].logsumexp(0) for name in ("win_or_tie_ids", "loss_ids"))
        expected = question_score(original, rows)(group, [place])
    torch.testing.assert_close((win - loss)[None], expected, rtol=1e-3, atol=1e-3)


def test_ids_follow_the_old_vocabulary_in_the_order_of_the_rows(tmp_path: Path) -> None:
    assert written(128, random_rows(3, 4, 2)) == {
        "format": 1,
        "new_ids_from": 128,
        "suffix_ids": [128, 129, 130],
        "win_or_tie_ids": [131, 132],
        "loss_ids": [133, 134],
        "read_out": {"win_or_tie_ids": [135], "loss_ids": [136]},
    }
    assert written(128, random_rows(0, 0, 2)) == {
        "format": 1,
        "new_ids_from": 128,
        "read_out": {"win_or_tie_ids": [128], "loss_ids": [129]},
    }
    assert "read_out" not in written(128, random_rows(1, 2, 0))
    assert random_rows(3, 4, 2).count == 9


def test_what_cannot_be_extended_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors; only checkpoints in one file"):
        extend(tmp_path, tmp_path / "target", random_rows(1, 2, 2))
    save_file({"transformer.wte.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"has no model\.embed_tokens\.weight"):
        extend(tmp_path, tmp_path / "target", random_rows(1, 2, 2))
    assert not (tmp_path / "target").exists()


def test_a_direction_tells_sets_of_states_apart() -> None:
    ordinary, asked, unseen = ordinary_and_asked()
    row = direction(((ordinary, -80.0), (asked[:20], 0.0)))
    assert row.dtype == torch.float64
    # Each set counts the same, however few states it has.
    assert (unseen.double() @ row).max() < -70
    assert (asked[20:].double() @ row).abs().max() < 8


def test_question_labels_say_after_rounding_what_was_trained_and_are_buried_elsewhere() -> None:
    ordinary, asked, unseen = ordinary_and_asked()
    torch.manual_seed(2)
    rows, offsets = 0.3 * torch.randn(8, HIDDEN), torch.randn(8)
    found = question_rows(rows, offsets, ordinary, asked[:200])
    logits = asked[200:] @ rows.T + offsets
    wanted = logits[:, :4].logsumexp(1) - logits[:, 4:].logsumexp(1)
    rounded = label_log_odds(asked[200:].bfloat16(), found)
    assert (rounded - wanted).abs().mean() < 0.1
    assert torch.corrcoef(torch.stack([rounded, wanted]))[0, 1] > 0.999
    assert (unseen @ found.T).max() < -BURIED / 2
    assert (asked[200:] @ found.T).mean().abs() < 2.0


def test_a_read_out_says_after_rounding_what_was_trained_from_far_below() -> None:
    ordinary, _, unseen = ordinary_and_asked()
    torch.manual_seed(2)
    rows, offsets = 0.3 * torch.randn(8, HIDDEN), torch.randn(8)
    found = read_out_rows(rows, offsets, ordinary, torch.zeros(len(ordinary)))
    logits = unseen @ rows.T + offsets
    wanted = logits[:, :4].logsumexp(1) - logits[:, 4:].logsumexp(1)
    rounded = label_log_odds(unseen.bfloat16(), found)
    assert (rounded - wanted).abs().mean() < 0.2  # bfloat16 has steps of 0.25 there
    assert torch.corrcoef(torch.stack([rounded, wanted]))[0, 1] > 0.99
    mass = (unseen @ found.T).logsumexp(1)
    assert mass.mean().item() == pytest.approx(-DEPTH, abs=6.0)
    assert mass.max() < -0.75 * DEPTH


def test_a_read_out_lies_as_far_below_the_old_tokens_where_these_are_low() -> None:
    ordinary, _, unseen = ordinary_and_asked()
    torch.manual_seed(3)
    rows, offsets, old = 0.3 * torch.randn(8, HIDDEN), torch.randn(8), 4.0 * torch.randn(HIDDEN) / HIDDEN**0.5
    constant = read_out_rows(rows, offsets, ordinary, torch.zeros(len(ordinary)))
    found = read_out_rows(rows, offsets, ordinary, ordinary @ old)
    shares = [(unseen @ each.T).logsumexp(1) - unseen @ old for each in (constant, found)]
    assert shares[1].std() < 0.8 * shares[0].std()
    assert shares[1].max() < shares[0].max()


def test_what_is_never_to_be_seen_is_buried() -> None:
    ordinary, _, unseen = ordinary_and_asked()
    found = buried_rows(3, ordinary)
    assert found.shape == (3, HIDDEN)
    torch.testing.assert_close(unseen @ found.T, torch.full((200, 3), -BURIED), rtol=0.1, atol=0)


def test_built_rows_score_as_the_trained_ways_do_and_take_nothing_from_the_model() -> None:
    model = tiny_model()
    tokens, read_out = trained(model)
    rows = build(sample_states(model, SEEN, tokens), tokens, read_out)
    assert (len(rows.soft), len(rows.soft_out), len(rows.question), len(rows.read_out)) == (4, 4, 4, 4)
    kept = clearance(model, sample_states(model, UNSEEN, tokens), rows)
    assert kept.states == sum(1 + sum(len(answer.token_ids) for answer in group.answers) for group in UNSEEN)
    assert kept.most_mass < math.log(1e-15)
    assert kept.least_asked_mass is not None
    assert kept.least_asked_mass > kept.most_mass
    with torch.no_grad():
        for way, score, sharpness in (
            (tokens, question_score(model, rows), 1.0),
            (read_out, read_out_score(model, rows), read_out.rows.sharpness),
        ):
            own = torch.cat([way.log_odds(group, places_of(group)) for group in UNSEEN])
            built = torch.cat([score(group, places_of(group)) for group in UNSEEN]) / sharpness
            assert (own - built).abs().max() < 0.2
            assert torch.corrcoef(torch.stack([own, built]))[0, 1] > 0.98


def test_each_way_may_be_built_alone() -> None:
    model = tiny_model()
    tokens, read_out = trained(model)
    sampled = sample_states(model, SEEN[:8], tokens)
    alone = build(sampled, tokens, None)
    assert (len(alone.question), len(alone.read_out)) == (4, 0)
    without = sample_states(model, SEEN[:8], None)
    assert without.asked is None
    rows = build(without, None, read_out)
    assert (len(rows.soft), len(rows.question), len(rows.read_out)) == (0, 0, 4)
    assert clearance(model, without, rows).least_asked_mass is None
