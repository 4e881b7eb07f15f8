"""Where a signal can exist: for each family of tasks how often an answer passes, and which scorer ranks answers right.

Free scorers read an answer's own tokens; others come from files of scores. Pure: groups in, figures out. Answers are
compared within one prompt only, as that is what best-of-N does, and intervals resample prompts (`statistics.py`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adaptive.evaluation.statistics import Bootstrap, Estimate
from adaptive.training.examples import TIE, Answer, Group

PLACES: Final = (16, 32, 64, 128)
"""Tokens after which answers are compared by default; and always at their end."""
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a scorer ranks the better of two answers to one prompt higher; equal scores count half.

    place: after so many tokens, None for whole answers. An answer that has ended by then is judged whole. pairs: of
    unequal rewards, both scored; prompts: with at least one.
    """

    scorer: str
    place: int | None
    accuracy: Estimate
    pairs: int
    prompts: int


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """One family, or `ALL`.

    answers: per prompt, on average. tokens: per answer, on average. single: share of answers that pass, each prompt
    counting alike. oracle: share of prompts of which any answer passes. unequal: share of prompts of which some answers
    are better than others. reward, best_reward: mean reward of an answer, and of the best of each prompt.
    """

    family: str
    prompts: int
    answers: float
    tokens: float
    single: Estimate
    oracle: Estimate
    unequal: Estimate
    reward: Estimate
    best_reward: Estimate
    accuracies: tuple[Accuracy, ...]


Free = Callable[[Answer, int], float]


def _mean(answer: Answer, length: int) -> float:
    return math.fsum(answer.logprobs[:length]) / length if length else 0.0


def _least(answer: Answer, length: int) -> float:
    return min(answer.logprobs[:length], default=0.0)


FREE: Final[Mapping[str, Free]] = {
    "mean_log_probability": _mean,
    "least_log_probability": _least,
    "shortest": lambda _, length: -float(length),
    "longest": lambda _, length: float(length),
}
"""Scorers that need nothing but the answer: from an answer and a length in tokens to a score, larger is better."""


@dataclass(slots=True)
class Scores:
    """Scores from files: by scorer, group and answer, of beginnings by their length and of whole answers.

    skipped: lines that could not be read.
    """

    partial: dict[str, dict[tuple[str, int], dict[int, float]]] = field(default_factory=dict)
    final: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)
    skipped: int = 0

    @property
    def scorers(self) -> list[str]:
        """Their names, sorted."""
        return sorted({*self.partial, *self.final})

    def read(self, path: Path) -> None:
        """Add the scores of a JSONL file: `id`, `answer` (its place), `tokens`, `final`, `scorer`, `value`.

        Scored examples, as training writes them, have `log_odds` instead of `value` and name no scorer: it is called
        like the file. Of two for the same the latest counts. Raises `OSError`.
        """
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                if line.strip() and not self._add(line, path.stem):
                    self.skipped += 1

    def at(self, scorer: str, group: Group, place: int, tokens: int | None) -> float | None:
        """Return the score of an answer after so many tokens, of the whole for None or if it has ended by then."""
        key = (group.id, place)
        if tokens is None or len(group.answers[place].token_ids) <= tokens:
            return self.final.get(scorer, {}).get(key)
        return self.partial.get(scorer, {}).get(key, {}).get(tokens)

    def _add(self, line: str, name: str) -> bool:
        try:
            row = json.loads(line)
            key, scorer = (str(row["id"]), int(row["answer"])), str(row.get("scorer", name))
            value = float(row["value"] if "value" in row else row["log_odds"])
            tokens, final = int(row["tokens"]), bool(row["final"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if not math.isfinite(value):
            return False
        if final:
            self.final.setdefault(scorer, {})[key] = value
        else:
            self.partial.setdefault(scorer, {}).setdefault(key, {})[tokens] = value
        return True


def table(
    groups: Iterable[Group],
    scores: Scores | None = None,
    *,
    places: Sequence[int] = PLACES,
    resamples: int = 1000,
    seed: int = 0,
) -> list[FamilyRow]:
    """Return a row per family, sorted, and last the one of all where there are several. Groups are read once."""
    scores = scores or Scores()
    read: dict[str, list[_Prompt]] = {}
    for group in groups:
        read.setdefault(group.family, []).append(_Prompt.of(group, scores, (*places, None)))
    named = sorted(read.items())
    if len(named) > 1:
        named.append((ALL, [prompt for _, prompts in named for prompt in prompts]))
    columns = list(itertools.product([*FREE, *scores.scorers], (*places, None)))
    return [_row(family, prompts, columns, resamples, seed) for family, prompts in named]


Column = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What the figures need of a group. won: by column, pairs ranked rightly (ties half) and pairs."""

    answers: int
    tokens: int
    single: float
    oracle: float
    unequal: float
    reward: float
    best: float
    won: Mapping[Column, tuple[float, int]]

    @classmethod
    def of(cls, group: Group, scores: Scores, places: Sequence[int | None]) -> _Prompt:
        answers = group.answers
        rewards = [answer.reward for answer in answers]
        won = {}
        for place in places:
            lengths = [len(answer.token_ids) for answer in answers]
            if place is not None:
                lengths = [min(place, length) for length in lengths]
            for name, free in FREE.items():
                values: list[float | None] = [free(*each) for each in zip(answers, lengths, strict=True)]
                won[name, place] = ranked(values, rewards)
            for name in scores.scorers:
                found = [scores.at(name, group, at, place) for at in range(len(answers))]
                won[name, place] = ranked(found, rewards)
        return cls(
            answers=len(answers),
            tokens=sum(len(answer.token_ids) for answer in answers),
            single=sum(answer.passed for answer in answers) / len(answers),
            oracle=float(any(answer.passed for answer in answers)),
            unequal=float(group.teaches),
            reward=math.fsum(rewards) / len(rewards),
            best=max(rewards),
            won=won,
        )


def ranked(values: Sequence[float | None], rewards: Sequence[float]) -> tuple[float, int]:
    """Return how many pairs of unequal rewards are ranked rightly, equal scores half, and how many there are.

    Answers without a score are in no pair.
    """
    won, pairs = 0.0, 0
    for (value, reward), (other, other_reward) in itertools.combinations(zip(values, rewards, strict=True), 2):
        if value is None or other is None or abs(reward - other_reward) < TIE:
            continue
        pairs += 1
        if value == other:
            won += 0.5
        elif (value > other) == (reward > other_reward):
            won += 1.0
    return won, pairs


def _row(family: str, prompts: Sequence[_Prompt], columns: Sequence[Column], resamples: int, seed: int) -> FamilyRow:
    bootstrap = Bootstrap(len(prompts), resamples=resamples, seed=seed)
    return FamilyRow(
        family=family,
        prompts=len(prompts),
        answers=sum(prompt.answers for prompt in prompts) / len(prompts),
        tokens=sum(prompt.tokens for prompt in prompts) / sum(prompt.answers for prompt in prompts),
        single=bootstrap.mean([prompt.single for prompt in prompts]),
        oracle=bootstrap.mean([prompt.oracle for prompt in prompts]),
        unequal=bootstrap.mean([prompt.unequal for prompt in prompts]),
        reward=bootstrap.mean([prompt.reward for prompt in prompts]),
        best_reward=bootstrap.mean([prompt.best for prompt in prompts]),
        accuracies=tuple(_accuracies(prompts, columns, resamples, seed)),
    )


def _accuracies(prompts: Sequence[_Prompt], columns: Sequence[Column], resamples: int, seed: int) -> Iterator[Accuracy]:
    # Prompts whose answers are all as good add nothing to any ratio; they would only take time.
    telling = [prompt for prompt in prompts if prompt.unequal]
    if not telling:
        return
    bootstrap = Bootstrap(len(telling), resamples=resamples, seed=seed)
    for scorer, place in columns:
        counted = [prompt.won[scorer, place] for prompt in telling]
        pairs = [float(count) for _, count in counted]
        yield Accuracy(
            scorer,
            place,
            bootstrap.ratio([each for each, _ in counted], pairs),
            int(sum(pairs)),
            sum(count > 0 for count in pairs),
        )


def plain(rows: Iterable[FamilyRow]) -> list[dict[str, Any]]:
    """Return the rows as JSON values, None for what JSON has no number for."""
    return [
        {
            "family": row.family,
            "prompts": row.prompts,
            "answers_per_prompt": row.answers,
            "tokens_per_answer": row.tokens,
            **{name: _plain(getattr(row, name)) for name in ("single", "oracle", "unequal", "reward", "best_reward")},
            "pair_accuracy": [
                {
                    "scorer": each.scorer,
                    "tokens": each.place,
                    **_plain(each.accuracy),
                    "pairs": each.pairs,
                    "prompts": each.prompts,
                }
                for each in row.accuracies
            ],
        }
        for row in rows
    ]


def _plain(estimate: Estimate) -> dict[str, float | None]:
    value = None if math.isnan(estimate.value) else estimate.value
    return {"value": value, "low": estimate.low, "high": estimate.high}
