"""What a preference pair is: two answers to one prompt, of which one is better with some probability.

Knows nothing of how pairs are stored, sent or read from files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

LEAST_PROBABILITY: Final = 0.5
"""Below it, the other answer would be the chosen one."""


class Source(StrEnum):
    """Who or what says which answer is better."""

    SELF_EVALUATION = "self_evaluation"
    PERSON = "person"
    JUDGE = "judge"
    VERIFIER = "verifier"


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One comparison.

    id: its own, and stays with it through export and import. messages: the prompt as the client sent it, without the
    constitution, in OpenAI's form. chosen, rejected: texts of the answers. probability: that chosen is the better one,
    0.5 (nobody can tell: a tie) to 1; a person's word is 1. user: whose preference it is. constitution_version: the
    version that was active, None without one. model: what wrote the answers. created_at: Unix seconds. response_id: of
    the answer that it came from, None for imported pairs. Raises `ValueError`.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    chosen: str
    rejected: str
    source: Source
    probability: float
    user: str
    model: str
    created_at: int
    constitution_version: int | None = None
    response_id: str | None = None

    def __post_init__(self) -> None:
        if not LEAST_PROBABILITY <= self.probability <= 1.0:
            raise ValueError(f"probability is {self.probability}; of the better answer it is from 0.5 to 1")
