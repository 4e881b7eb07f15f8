"""Examples for training self-evaluation: answers of the model itself, and how each compares with the others.

An example is a prompt, an answer up to a cut, and the share of the other answers to this prompt that the whole answer
beats or ties: the target of P(win or tie) (arXiv 2410.02725, on-policy pairwise preferences; ties are kept). What one
prompt gave is a `Group`, one line of JSON in a data file.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from adaptive.engine import TokenIds
from adaptive.lines import open_lines
from adaptive.splits import Split
from adaptive.training import parquet

FORMAT: Final = 1
"""Raised when the meaning of a line changes: lines of another format are not read."""
TIE: Final = 0.01
"""Rewards nearer to each other than this are a tie."""
PARQUET: Final = ".parquet"
_FEWEST_ANSWERS: Final = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the model.

    token_ids: with the token that ends it, if the model gave one. logprobs: of these tokens, at temperature 1. text: as
    a client sees it. reward: larger is better. passed: by a verifier; where there is none, it beats or ties all others.
    win_or_tie: share of the other answers that it beats or ties, 0 to 1. cuts: ascending lengths in tokens at which it
    is an example; the last is its whole length.
    """

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    reward: float
    passed: bool
    win_or_tie: float
    cuts: tuple[int, ...]


_ANSWER: Final = tuple(field.name for field in fields(Answer))


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its answers.

    id: unique in its file. family: the kind of task. messages: as the model was given them, the constitution among
    them. constitution: its id, None without one. prompt_ids: the messages in the model's tokens.
    """

    id: str
    family: str
    split: Split
    messages: tuple[Mapping[str, Any], ...]
    constitution: str | None
    prompt_ids: TokenIds
    answers: tuple[Answer, ...]

    @property
    def teaches(self) -> bool:
        """Some answers are better than others."""
        return any(answer.win_or_tie < 1.0 for answer in self.answers)

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        # Field by field: `asdict` copies every token, which takes most of the time of writing a file.
        return {
            "format": FORMAT,
            "id": self.id,
            "family": self.family,
            "split": self.split.value,
            "messages": list(self.messages),
            "constitution": self.constitution,
            "prompt_ids": self.prompt_ids,
            "answers": [{name: getattr(answer, name) for name in _ANSWER} for answer in self.answers],
        }

    def to_line(self) -> str:
        """Return it as one line of JSON, without a line break."""
        return json.dumps(self.to_plain(), ensure_ascii=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Group:
        """Return what such values say. Raises `ValueError`, `KeyError` or `TypeError` for what is no group."""
        if plain["format"] != FORMAT:
            raise ValueError(f"format {plain['format']!r} is not {FORMAT}")
        group = cls(
            id=_text(plain["id"]),
            family=_text(plain["family"]),
            split=Split(plain["split"]),
            messages=tuple(plain["messages"]),
            constitution=None if plain["constitution"] is None else _text(plain["constitution"]),
            prompt_ids=tuple(plain["prompt_ids"]),
            answers=tuple(_answer(each) for each in plain["answers"]),
        )
        if len(group.answers) < _FEWEST_ANSWERS:
            raise ValueError(f"group {group.id} has fewer than {_FEWEST_ANSWERS} answers")
        return group

    @classmethod
    def from_line(cls, line: str) -> Group | None:
        """Return what a line says, None for one that is torn or of another format."""
        try:
            return cls.from_plain(json.loads(line))
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn from: `answer` of `group` (its place there) after `cut` tokens."""

    group: Group
    place: int
    cut: int

    @property
    def answer(self) -> Answer:
        """The whole answer."""
        return self.group.answers[self.place]

    @property
    def token_ids(self) -> TokenIds:
        """The answer's tokens up to the cut."""
        return self.answer.token_ids[: self.cut]

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Those of `token_ids`."""
        return self.answer.logprobs[: self.cut]

    @property
    def final(self) -> bool:
        """The answer is whole."""
        return self.cut == len(self.answer.token_ids)

    @property
    def target(self) -> float:
        """What P(win or tie) should be, 0 to 1."""
        return self.answer.win_or_tie


class GroupFile:
    """Iterates over the groups of a data file, one at a time, as such files are large; any number of times.

    path: of JSONL, or of Parquet where it ends in .parquet. skipped: lines that could not be read in the latest
    iteration, torn by a kill or of another format. Raises `OSError` from the iteration, and `ParquetMissing`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0

    def __iter__(self) -> Iterator[Group]:
        self.skipped = 0
        for group in self._found():
            if group is None:
                self.skipped += 1
            else:
                yield group

    def _found(self) -> Iterator[Group | None]:
        if self.path.suffix == PARQUET:
            for row in parquet.read(self.path):
                yield Group.from_plain(row)
            return
        with open_lines(self.path) as lines:
            for line in lines:
                if line.strip():
                    yield Group.from_line(line)


class JsonlWriter:
    """Writes groups as lines; a context manager, as `parquet.Writer` is."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write JSON values as `Group.to_plain` gives them."""
        self._file.write(json.dumps(row, ensure_ascii=True, separators=(",", ":"), allow_nan=False) + "\n")


def examples(groups: Iterable[Group]) -> Iterator[Example]:
    """Yield every cut of every answer, in order."""
    for group in groups:
        for place, answer in enumerate(group.answers):
            for cut in answer.cuts:
                yield Example(group, place, cut)


def win_or_tie_shares(rewards: Sequence[float], tie: float = TIE) -> tuple[float, ...]:
    """Return for each reward the share of the others that it is more than, or nearer to than `tie`; 0 to 1.

    Raises `ValueError` for fewer than two rewards, of which no share can be said, and for one that is not finite.
    """
    if len(rewards) < _FEWEST_ANSWERS:
        raise ValueError(f"{len(rewards)} rewards: a share of the others needs at least {_FEWEST_ANSWERS}")
    if not all(map(math.isfinite, rewards)):
        raise ValueError(f"rewards are {list(rewards)}; all must be finite")
    return tuple(
        # An answer beats or ties itself too, and is no other.
        (sum(own >= other or other - own < tie for other in rewards) - 1) / (len(rewards) - 1)
        for own in rewards
    )


def cuts(length: int, count: int, rng: random.Random) -> tuple[int, ...]:
    """Return up to `count` different lengths from 1 to length - 1, each as likely, ascending; and then the length.

    One that is whole at 0 or 1 tokens is an example once.
    """
    return (*sorted(rng.sample(range(1, length), min(count, max(0, length - 1)))), length)


def _answer(plain: Mapping[str, Any]) -> Answer:
    answer = Answer(
        token_ids=tuple(plain["token_ids"]),
        logprobs=tuple(map(float, plain["logprobs"])),
        text=_text(plain["text"]),
        finish_reason=_text(plain["finish_reason"]),
        reward=float(plain["reward"]),
        passed=bool(plain["passed"]),
        win_or_tie=float(plain["win_or_tie"]),
        cuts=tuple(plain["cuts"]),
    )
    if len(answer.logprobs) != len(answer.token_ids) or not answer.cuts or answer.cuts[-1] != len(answer.token_ids):
        raise ValueError("tokens, log-probabilities and cuts of an answer do not belong together")
    return answer


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
