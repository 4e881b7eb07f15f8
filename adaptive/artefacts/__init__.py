"""Trained self-evaluation that ships with the project: a directory per model, named like it.

    SmolLM2-135M-Instruct/
        rows.safetensors                 the new rows of the vocabulary, bfloat16 (`adaptive.training.checkpoint`)
        preamble_self_evaluation.json    their ids and the calibration maps (`server/self_evaluation_config.py`)
        README.md                        the model card: data, training, measures, limits

A few kilobytes, from which the model's plain checkpoint is extended where it is built.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

ROWS: Final = "rows.safetensors"
CONFIG: Final = "preamble_self_evaluation.json"
CARD: Final = "README.md"


def packaged(model: str, directory: Path = Path(__file__).parent) -> Path | None:
    """Return the artefact of a model by its name, None where none ships. directory: where they lie."""
    artefact = directory / model
    return artefact if (artefact / ROWS).is_file() and (artefact / CONFIG).is_file() else None


def digest(artefact: Path) -> str:
    """Return a text that is another one for another artefact; the card does not count. Raises `OSError`."""
    found = hashlib.sha256()
    for name in (ROWS, CONFIG):
        found.update(hashlib.sha256((artefact / name).read_bytes()).digest())
    return found.hexdigest()
