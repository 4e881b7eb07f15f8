"""Groups for tests: answers by their reward, of one-letter tokens."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive.splits import Split
from adaptive.training.examples import Answer, Group, win_or_tie_shares


def answer(reward: float, logprobs: Sequence[float] = (-0.5, -0.25), share: float = 1.0, **more: object) -> Answer:
    length = len(logprobs)
    fields = {
        "token_ids": tuple(range(65, 65 + length)),
        "logprobs": tuple(logprobs),
        "text": "".join(map(chr, range(65, 65 + length))),
        "finish_reason": "stop",
        "reward": reward,
        "passed": reward >= 1.0,
        "win_or_tie": share,
        "cuts": (length,),
    }
    return Answer(**(fields | more))  # type: ignore[arg-type]


def group(
    rewards: Sequence[float],
    logprobs: Sequence[Sequence[float]] = (),
    *,
    id: str = "a",  # noqa: A002 -- as the field
    family: str = "sums",
    split: Split = Split.TRAIN,
) -> Group:
    shares = win_or_tie_shares(rewards)
    given = logprobs or [(-0.5, -0.25)] * len(rewards)
    return Group(
        id=id,
        family=family,
        split=split,
        messages=({"role": "user", "content": f"prompt {id}"},),
        constitution=None,
        prompt_ids=(1, 2, 3),
        answers=tuple(answer(*each) for each in zip(rewards, given, shares, strict=True)),
    )
