"""What a prompt may be used for: said by its text alone, so that data, calibration and evaluation never share one.

`preamble selfeval data` and the synthetic data sets of `preamble eval` have the same splits, as long as they have the
same shares.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Split(StrEnum):
    """What a prompt is for. Nothing is ever fitted on `TEST`."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Shares:
    """What share of the prompts goes to each split, each 0 to 1, together 1. Raises `ValueError`."""

    train: float = 0.7
    calibration: float = 0.15
    test: float = 0.15

    def __post_init__(self) -> None:
        each = (self.train, self.calibration, self.test)
        if not all(0.0 <= share <= 1.0 for share in each) or not math.isclose(sum(each), 1.0, abs_tol=1e-9):
            raise ValueError(f"shares of train, calibration and test are {each}; give numbers from 0 whose sum is 1")

    def __str__(self) -> str:
        return f"{self.train:g},{self.calibration:g},{self.test:g}"


SHARES: Final = Shares()
"""Those of `NAME:test` and its like: with others a prompt of `preamble eval synthetic:test` may be trained on."""


def split_of(messages: Sequence[Mapping[str, Any]], shares: Shares = SHARES) -> Split:
    """Return where a prompt belongs.

    messages: without a constitution that was mixed in, so that a prompt with one goes where it goes without. A system
    message that is the prompt's own counts.
    """
    digest = hashlib.blake2b(text_of(messages).encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64
    if place < shares.train:
        return Split.TRAIN
    return Split.CALIBRATION if place < shares.train + shares.calibration else Split.TEST


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what tells prompts apart: what the messages say, a blank line between them."""
    contents = (message.get("content") for message in messages)
    return "\n\n".join(each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in contents)
