"""New vocabulary rows into an ordinary checkpoint, which stock vLLM serves, and whose ordinary output is what it was.

The vocabulary grows by a few ids that the tokenizer does not know, so no text leads to them. Input and output matrix
are untied; of the old rows not a bit changes. The new output rows must never be sampled, so their logits are to be far
below every ordinary one wherever the model may write: a *direction* of the last state, along which all ordinary states
are alike, carries them there. After a question of soft tokens the state is nothing like an ordinary one, and there the
same direction lets the labels rise to where bfloat16 is fine (its steps are 0.25 beyond 32 and 0.016 below 4).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from adaptive.artefacts import CONFIG, ROWS

DEPTH: Final = 72.0
"""How far below the probability of all tokens the read-out's labels are to have theirs, as a natural logarithm."""
BURIED: Final = 80.0
"""How far below zero everything else that is new lies at ordinary states."""
_RIDGE: Final = 1e-3
_ROUNDS: Final = 6
_PRESSED: Final = 4.0
_WEIGHTS: Final = "model.safetensors"
_TENSORS: Final = ("soft", "soft_out", "question", "read_out")
_LABELS: Final = ("win_or_tie_ids", "loss_ids")


class CheckpointError(Exception):
    """A checkpoint that cannot be extended. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows for the end of the vocabulary, in this order: soft tokens, the question's labels, the read-out's labels.

    soft: embeddings, (soft tokens, hidden). question, read_out: output rows, (labels, hidden); half of the labels are
    for win or tie and come first. soft_out: the output rows of the soft tokens. All float32; any may have no rows.
    """

    soft: Tensor
    soft_out: Tensor
    question: Tensor
    read_out: Tensor

    @property
    def count(self) -> int:
        """How many."""
        return len(self.soft) + len(self.question) + len(self.read_out)


def direction(states: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Return the row whose logit at the states of each set is nearest to the set's number, in float64. (hidden,).

    states: sets of (examples, hidden); each set counts the same. Ridge regression on states of unit spread, so that no
    single large dimension has to carry what bfloat16 would round away.
    """
    rows = torch.cat([each.double() for each, _ in states])
    wanted = torch.cat([torch.full((len(each),), value, dtype=torch.float64) for each, value in states])
    weight = torch.cat([torch.full((len(each),), 1.0 / len(each), dtype=torch.float64) for each, _ in states])
    return _regression(rows, wanted, weight)


def _regression(states: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    spread = states.std(0).clamp_min(1e-3)
    scaled = states / spread
    gram = scaled.T @ (scaled * weight[:, None])
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram, scaled.T @ (weight * wanted)) / spread


def question_rows(rows: Tensor, offsets: Tensor, ordinary: Tensor, asked: Tensor) -> Tensor:
    """Return output rows for labels that are read after the soft tokens. (labels, hidden), float32.

    rows, offsets: see `LabelRows.plain`. ordinary: states at which the model writes; asked: states after the question.
    """
    centre = float((asked.double() @ rows.double().T + offsets.double()).mean())
    down = direction(((ordinary, -BURIED), (asked, 0.0)))
    level = direction(((ordinary, 0.0), (asked, 1.0)))
    # The mean of all labels has no meaning, only their differences do: around zero they are rounded least.
    return (rows.double() + down + (offsets.double() - centre)[:, None] * level).float()


def read_out_rows(rows: Tensor, offsets: Tensor, ordinary: Tensor, everything: Tensor) -> Tensor:
    """Return output rows for labels that are read at ordinary states, `DEPTH` below. (labels, hidden), float32.

    everything: log of the sum of exp over all old logits at each state, (examples,). What all labels have in common has
    no meaning, so a row that all of them get takes them down, by more where they stand out more. It is fitted in some
    rounds, each of which weighs the states more that were too high in the one before: the highest is what matters.
    """
    states = ordinary.double()
    centred = offsets.double() - offsets.double().mean()
    labels = rows.double() + centred[:, None] * direction(((ordinary, 1.0),))
    wanted = everything.double() - DEPTH - (states @ labels.T).logsumexp(1)
    weight = torch.full_like(wanted, 1.0 / len(wanted))
    down = torch.zeros_like(states[0])
    for _ in range(_ROUNDS):
        down = _regression(states, wanted, weight)
        above = (states @ down - wanted).clamp_min(0.0)
        weight = 1.0 + _PRESSED * (above / above.square().mean().sqrt().clamp_min(1e-6)).square()
        weight /= weight.sum()
    return (labels + down).float()


def buried_rows(count: int, ordinary: Tensor) -> Tensor:
    """Return output rows for tokens that are never to be seen. (count, hidden), float32."""
    return direction(((ordinary, -BURIED),)).float().repeat(count, 1)


def extend(source: Path, target: Path, rows: NewRows) -> None:
    """Write the checkpoint in `source` to the directory `target`, with these rows at the end of its vocabulary.

    Raises `CheckpointError` for a checkpoint in several files, or whose embeddings are not where Llama has them.
    """
    from safetensors import safe_open  # noqa: PLC0415 -- not for the proxy
    from safetensors.torch import save_file  # noqa: PLC0415

    if not (source / _WEIGHTS).is_file():
        raise CheckpointError(f"{source} has no {_WEIGHTS}; only checkpoints in one file can be extended.")
    with safe_open(source / _WEIGHTS, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 -- no mapping
        about = opened.metadata() or {"format": "pt"}
    embeddings = tensors.get("model.embed_tokens.weight")
    if embeddings is None:
        raise CheckpointError(f"{source} has no model.embed_tokens.weight; its architecture is not known here.")
    heads = tensors.get("lm_head.weight", embeddings)
    none = torch.zeros(len(rows.question) + len(rows.read_out), embeddings.shape[1])
    tensors["model.embed_tokens.weight"] = _extended(embeddings, torch.cat([rows.soft, none]))
    tensors["lm_head.weight"] = _extended(heads, torch.cat([rows.soft_out, rows.question, rows.read_out]))
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in {_WEIGHTS, "config.json"}:
            shutil.copy2(file, target / file.name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {"vocab_size": len(embeddings) + rows.count, "tie_word_embeddings": False}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, target / _WEIGHTS, metadata=about)


def written(vocabulary: int, rows: NewRows) -> Mapping[str, Any]:
    """Return the ids of new rows as `preamble_self_evaluation.json` has them. vocabulary: its size without them."""
    soft = range(vocabulary, vocabulary + len(rows.soft))
    question = range(soft.stop, soft.stop + len(rows.question))
    read_out = range(question.stop, question.stop + len(rows.read_out))
    found: dict[str, Any] = {"format": 1, "new_ids_from": vocabulary}
    if soft:
        found["suffix_ids"] = list(soft)
        found |= _labels(question)
    if read_out:
        found["read_out"] = _labels(read_out)
    return found


def save_rows(artefact: Path, rows: NewRows) -> None:
    """Write the rows of an artefact, in bfloat16, as `load_rows` reads them."""
    from safetensors.torch import save_file  # noqa: PLC0415 -- not for the proxy

    tensors = {"soft": rows.soft, "soft_out": rows.soft_out[:1], "question": rows.question, "read_out": rows.read_out}
    # A copy of each: safetensors refuses tensors that share memory.
    save_file({name: each.to(torch.bfloat16, copy=True) for name, each in tensors.items()}, artefact / ROWS)


def load_rows(artefact: Path) -> NewRows:
    """Return the rows of an artefact, a directory that holds `rows.safetensors`.

    Its tensors: soft (soft tokens, hidden), soft_out (1, hidden), the same for each of them and without a row where
    there are none, question and read_out (labels, hidden). Raises `CheckpointError`.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 -- not for the proxy

    file = artefact / ROWS
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118 -- no mapping
    except (OSError, SafetensorError) as error:
        raise _unusable(file, f"cannot be read ({error})") from error
    if missing := sorted(set(_TENSORS) - tensors.keys()):
        raise _unusable(file, f"lacks {', '.join(missing)}")
    soft, soft_out, question, read_out = (tensors[name] for name in _TENSORS)
    for name in _TENSORS:
        found = tensors[name]
        if found.dim() != 2 or found.shape[1] != soft.shape[-1] or not bool(found.isfinite().all()):  # noqa: PLR2004
            raise _unusable(file, f"has a {name} of shape {tuple(found.shape)} that is no matrix of finite rows")
    if (
        len(soft_out) != min(1, len(soft))
        or bool(len(soft)) != bool(len(question))
        or len(question) % 2 + len(read_out) % 2
    ):
        shapes = ", ".join(f"{len(tensors[name])} of {name}" for name in _TENSORS)
        raise _unusable(file, f"has rows that do not belong together: {shapes}")
    return NewRows(soft, soft_out.repeat(len(soft), 1), question, read_out)


def config_of(artefact: Path, checkpoint: Path, rows: NewRows) -> Mapping[str, Any]:
    """Return the artefact's `preamble_self_evaluation.json` for a checkpoint that is extended by its rows.

    checkpoint: as it is before. Raises `CheckpointError` where the ids of the file are not those that the rows will
    have there, or the rows have another length than the checkpoint's: the artefact is another checkpoint's.
    """
    file = artefact / CONFIG
    try:
        value = json.loads(file.read_bytes())
        model = json.loads((checkpoint / "config.json").read_bytes())
        vocabulary, hidden = int(model["vocab_size"]), int(model["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(
            file, f"cannot be read beside a config.json with vocab_size and hidden_size ({error})"
        ) from error
    if rows.soft.shape[1] != hidden:
        raise _unusable(
            artefact / ROWS, f"has rows of {rows.soft.shape[1]} numbers, and the checkpoint's have {hidden}"
        )
    if not isinstance(value, dict):
        raise _unusable(file, "is no JSON object")
    wanted = written(vocabulary, rows)
    for name, ids in _ids(wanted).items():
        found = _ids(value).get(name)
        if found != ids:
            raise _unusable(file, f"has {name} {found}, and the rows become {ids} behind {vocabulary} ids")
    if spare := sorted(_ids(value).keys() - _ids(wanted).keys()):
        raise _unusable(file, f"has {spare[0]}, for which {ROWS} has no rows")
    return {**value, "new_ids_from": vocabulary}


def extend_by_artefact(source: Path, target: Path, artefact: Path) -> None:
    """Write the checkpoint in `source` to `target` with an artefact's rows, and its configuration beside the weights.

    Raises `CheckpointError`.
    """
    rows = load_rows(artefact)
    config = config_of(artefact, source, rows)
    extend(source, target, rows)
    (target / CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")


def _ids(value: Mapping[str, Any]) -> dict[str, Any]:
    read_out = value.get("read_out")
    read_out = read_out if isinstance(read_out, Mapping) else {}
    found = {name: value[name] for name in ("suffix_ids", *_LABELS) if name in value}
    return found | {f"read_out.{name}": read_out[name] for name in _LABELS if name in read_out}


def _unusable(file: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{file} {problem}. Take an artefact that `preamble selfeval train` made for this very checkpoint, or do "
        "without one: set embedded_self_evaluation to false."
    )


def _labels(ids: range) -> dict[str, list[int]]:
    half = ids.start + len(ids) // 2
    return {"win_or_tie_ids": list(range(ids.start, half)), "loss_ids": list(range(half, ids.stop))}


def _extended(matrix: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([matrix, rows.to(matrix.dtype)]).contiguous()
