"""An artefact is put into a checkpoint as it was trained, or refused in words that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adaptive.artefacts import CONFIG, ROWS

torch: Any = pytest.importorskip("torch", reason="the engine's extra is not installed")
safetensors: Any = pytest.importorskip("safetensors.torch")
checkpoint: Any = pytest.importorskip("adaptive.training.checkpoint")

VOCABULARY, HIDDEN, SOFT, LABELS = 10, 8, 3, 4


def random(*shape: int, seed: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return a checkpoint of a model with tied embeddings, without its other weights."""
    folder = tmp_path / "plain"
    folder.mkdir()
    tensors = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN, seed=1), "model.norm.weight": torch.ones(HIDDEN)}
    safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def artefact(folder: Path, *, softs: int = SOFT, labels: int = LABELS, **changed: Any) -> Path:
    """Write one with seeded random rows; changed: tensors in place of those."""
    tensors = {
        "soft": random(softs, HIDDEN, seed=2),
        "soft_out": random(min(1, softs), HIDDEN, seed=3),
        "question": random(LABELS if softs else 0, HIDDEN, seed=4),
        "read_out": random(labels, HIDDEN, seed=5),
    }
    folder.mkdir()
    safetensors.save_file(tensors | changed, folder / ROWS)
    if not changed:
        rows = checkpoint.load_rows(folder)
        (folder / CONFIG).write_text(json.dumps(dict(checkpoint.written(VOCABULARY, rows)) | {"min_label_mass": 0.5}))
    return folder


def test_the_rows_stand_behind_the_vocabulary_and_nothing_else_changes(plain: Path, tmp_path: Path) -> None:
    made = artefact(tmp_path / "artefact")
    checkpoint.extend_by_artefact(plain, tmp_path / "extended", made)
    found = safetensors.load_file(tmp_path / "extended" / "model.safetensors")
    old = safetensors.load_file(plain / "model.safetensors")["model.embed_tokens.weight"]
    embeddings, head = found["model.embed_tokens.weight"], found["lm_head.weight"]
    assert embeddings.shape == head.shape == (VOCABULARY + SOFT + 2 * LABELS, HIDDEN)
    assert torch.equal(embeddings[:VOCABULARY], old)
    assert torch.equal(head[:VOCABULARY], old)
    rows = safetensors.load_file(made / ROWS)
    assert torch.equal(embeddings[VOCABULARY : VOCABULARY + SOFT], rows["soft"])
    new = head[VOCABULARY:].split([SOFT, LABELS, LABELS])
    assert [torch.equal(*pair) for pair in zip(new[1:], (rows["question"], rows["read_out"]), strict=True)] == [
        True
    ] * 2
    assert all(torch.equal(each, rows["soft_out"][0]) for each in new[0])
    config = json.loads((tmp_path / "extended" / "config.json").read_text())
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (VOCABULARY + SOFT + 2 * LABELS, False)
    assert (tmp_path / "extended" / "tokenizer.json").read_text() == "{}"


def test_the_configuration_beside_the_weights_has_the_ids_of_the_rows(plain: Path, tmp_path: Path) -> None:
    checkpoint.extend_by_artefact(plain, tmp_path / "extended", artefact(tmp_path / "artefact"))
    assert json.loads((tmp_path / "extended" / CONFIG).read_text()) == {
        "format": 1,
        "new_ids_from": 10,
        "suffix_ids": [10, 11, 12],
        "win_or_tie_ids": [13, 14],
        "loss_ids": [15, 16],
        "read_out": {"win_or_tie_ids": [17, 18], "loss_ids": [19, 20]},
        "min_label_mass": 0.5,
    }


def test_an_artefact_may_be_a_question_or_a_read_out_alone(plain: Path, tmp_path: Path) -> None:
    for name, parts in (("question", {"labels": 0}), ("read_out", {"softs": 0})):
        checkpoint.extend_by_artefact(plain, tmp_path / f"by_{name}", artefact(tmp_path / name, **parts))
        told = json.loads((tmp_path / f"by_{name}" / CONFIG).read_text())
        assert ("suffix_ids" in told, "read_out" in told) == (name == "question", name == "read_out")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("suffix_ids", [9, 10, 11], r"has suffix_ids \[9, 10, 11\], and the rows become \[10, 11, 12\] behind 10 ids"),
        ("suffix_ids", None, "has suffix_ids None"),
        ("loss_ids", [15], r"has loss_ids \[15\]"),
        ("read_out", {"win_or_tie_ids": [17, 18], "loss_ids": [19, 21]}, r"has read_out.loss_ids \[19, 21\]"),
        ("read_out", None, "has read_out.win_or_tie_ids None"),
    ],
)
def test_ids_that_are_not_those_of_the_rows_are_named_with_a_remedy(
    plain: Path, tmp_path: Path, field: str, value: object, said: str
) -> None:
    made = artefact(tmp_path / "artefact")
    config = json.loads((made / CONFIG).read_text()) | {field: value}
    (made / CONFIG).write_text(json.dumps(config))
    with pytest.raises(
        checkpoint.CheckpointError, match=rf"{CONFIG} {said}(.|\n)*set embedded_self_evaluation to false"
    ):
        checkpoint.extend_by_artefact(plain, tmp_path / "extended", made)
    assert not (tmp_path / "extended").exists()


def test_a_configuration_with_ids_that_no_rows_are_there_for_is_refused(plain: Path, tmp_path: Path) -> None:
    made = artefact(tmp_path / "artefact", labels=0)
    config = json.loads((made / CONFIG).read_text()) | {"read_out": {"win_or_tie_ids": [17], "loss_ids": [18]}}
    (made / CONFIG).write_text(json.dumps(config))
    with pytest.raises(checkpoint.CheckpointError, match=r"has read_out.loss_ids, for which rows.safetensors has no"):
        checkpoint.extend_by_artefact(plain, tmp_path / "extended", made)


def test_an_artefact_of_another_checkpoint_is_refused(plain: Path, tmp_path: Path) -> None:
    made = artefact(tmp_path / "artefact")
    config = json.loads((plain / "config.json").read_text())
    for changed, said in (
        ({"vocab_size": 12}, "behind 12 ids"),
        ({"hidden_size": 9}, "rows of 8 numbers, and the checkpoint's have 9"),
        ({"hidden_size": None}, "cannot be read beside a config.json"),
    ):
        (plain / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(checkpoint.CheckpointError, match=said):
            checkpoint.extend_by_artefact(plain, tmp_path / "extended", made)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"question": torch.ones(LABELS)}, r"has a question of shape \(4,\)"),
        ({"read_out": torch.ones(LABELS, HIDDEN + 1)}, r"has a read_out of shape \(4, 9\)"),
        ({"question": torch.full((LABELS, HIDDEN), torch.nan)}, "no matrix of finite rows"),
        ({"question": torch.ones(3, HIDDEN)}, "do not belong together: 3 of soft, 1 of soft_out, 3 of question"),
        ({"question": torch.ones(0, HIDDEN)}, "do not belong together"),
        ({"soft": torch.ones(0, HIDDEN)}, "do not belong together"),
        ({"soft_out": torch.ones(3, HIDDEN)}, "do not belong together"),
    ],
)
def test_rows_that_make_no_question_are_named(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=rf"{ROWS} .*{said}"):
        checkpoint.load_rows(artefact(tmp_path / "artefact", **changed))


def test_a_file_of_rows_that_is_missing_broken_or_incomplete_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "artefact"
    folder.mkdir()
    with pytest.raises(checkpoint.CheckpointError, match=rf"{ROWS} cannot be read"):
        checkpoint.load_rows(folder)
    (folder / ROWS).write_bytes(b"no tensors")
    with pytest.raises(checkpoint.CheckpointError, match=rf"{ROWS} cannot be read"):
        checkpoint.load_rows(folder)
    safetensors.save_file({"soft": torch.ones(1, HIDDEN)}, folder / ROWS)
    with pytest.raises(checkpoint.CheckpointError, match="lacks question, read_out, soft_out"):
        checkpoint.load_rows(folder)
