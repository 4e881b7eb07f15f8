"""Selection: which candidate is the reply. Every selector returns all finalists, best first, for a client with n > 1.

A complete reply comes before one that was cut short, and of two that are equal in everything else the earlier.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from adaptive.policy import SelectorName

Ranking = tuple[int, ...]
"""Indices of candidates, best first."""


@dataclass(frozen=True, slots=True)
class Finalist:
    """A candidate that may be returned.

    score: of the scorer in force, or None. complete: it ended by itself. tokens: its length. payloads: those of its
    steps; what is no text, such as a tool call, is in them.
    """

    index: int
    text: str
    score: float | None
    complete: bool
    tokens: int
    payloads: tuple[object, ...] = ()


class SelectionFailed(Exception):
    """The selector gave no ranking; the message says why."""


class Selector(Protocol):
    """A way to pick. needs_scores: it reads `Finalist.score`. calls_upstream: it takes time."""

    @property
    def name(self) -> str:
        """Its name in results, traces and metrics."""
        ...

    @property
    def needs_scores(self) -> bool:
        """True when final scores are worth buying for it."""
        ...

    @property
    def calls_upstream(self) -> bool:
        """True when it waits for the network, which a passed deadline does not allow."""
        ...

    async def rank(self, finalists: Sequence[Finalist]) -> Ranking:
        """Return the indices of all finalists, best first. Raises `SelectionFailed`."""
        ...


class Reward(Protocol):
    """An upstream reward model, bound to the conversation (vLLM's score or pooling endpoint)."""

    async def rewards(self, replies: Sequence[Finalist]) -> Sequence[float]:
        """Return one reward per reply, in order, larger is better. Raises `SelectionFailed`."""
        ...


@dataclass(frozen=True, slots=True)
class HighestScore:
    """The highest score of whatever scorer is in force: P(win or tie) by default, as in arXiv 2410.02725."""

    name: str = SelectorName.SELF_EVALUATION.value
    needs_scores: bool = True
    calls_upstream: bool = False

    async def rank(self, finalists: Sequence[Finalist]) -> Ranking:
        """Return the indices by score."""
        return by_score(finalists)


@dataclass(frozen=True, slots=True)
class First:
    """The earliest candidate that is complete: what is left of best-of-N when nothing is known of quality."""

    name: str = SelectorName.FIRST.value
    needs_scores: bool = False
    calls_upstream: bool = False

    async def rank(self, finalists: Sequence[Finalist]) -> Ranking:
        """Return the indices, complete ones first, then in the order of drawing."""
        return tuple(each.index for each in sorted(finalists, key=lambda each: (not each.complete, each.index)))


@dataclass(frozen=True, slots=True)
class Majority:
    """Self-consistency (arXiv 2203.11171): the answer that most candidates give, and the best-scored one giving it."""

    answer: Callable[[str], str | None]
    name: str = SelectorName.MAJORITY.value
    needs_scores: bool = True
    calls_upstream: bool = False

    async def rank(self, finalists: Sequence[Finalist]) -> Ranking:
        """Return the indices by votes of their answer; those without an answer after all that have one."""
        return by_votes(finalists, [self.answer(each.text) for each in finalists])


@dataclass(frozen=True, slots=True)
class RewardModel:
    """The highest reward of an upstream reward model."""

    reward: Reward
    name: str = SelectorName.REWARD_MODEL.value
    needs_scores: bool = False
    calls_upstream: bool = True

    async def rank(self, finalists: Sequence[Finalist]) -> Ranking:
        """Return the indices by reward. Raises `SelectionFailed`."""
        rewards = await self.reward.rewards(finalists)
        if len(rewards) != len(finalists):
            raise SelectionFailed(f"the reward model gave {len(rewards)} rewards for {len(finalists)} replies")
        if any(math.isnan(each) for each in rewards):
            raise SelectionFailed("the reward model gave NaN for a reply")
        return by_score([replace(each, score=reward) for each, reward in zip(finalists, rewards, strict=True)])


def by_score(finalists: Sequence[Finalist]) -> Ranking:
    """Return the indices: complete first, scored before unscored, higher score, and of what was cut the longer."""

    def order(each: Finalist) -> tuple[bool, bool, float, int, int]:
        length = 0 if each.complete else -each.tokens
        return (not each.complete, each.score is None, -(each.score or 0.0), length, each.index)

    return tuple(each.index for each in sorted(finalists, key=order))


def by_votes(finalists: Sequence[Finalist], answers: Sequence[str | None]) -> Ranking:
    """Return the indices: those of the most frequent answer first; answers with equal votes by their best candidate.

    Only complete replies vote. Within an answer, by score.
    """
    place = {index: place for place, index in enumerate(by_score(finalists))}
    groups: dict[str | None, list[int]] = defaultdict(list)
    for each, answer in zip(finalists, answers, strict=True):
        groups[answer if each.complete else None].append(each.index)
    for members in groups.values():
        members.sort(key=place.__getitem__)
    silent = groups.pop(None, [])
    ranked = sorted(groups.values(), key=lambda members: (-len(members), place[members[0]]))
    return tuple(index for members in [*ranked, silent] for index in members)
