"""Scored examples with a known truth, for the tests of calibration."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from adaptive.calibration import Reading
from adaptive.training.scored import Scored


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scored(
    prompts: int,
    *,
    seed: int = 0,
    answers: int = 8,
    cuts: Sequence[int] = (8, 40, 70, 150, 300),
    log_odds: Callable[[float, Reading], float] = lambda quality, _: quality,
    coins: bool = False,
    first: str = "p",
) -> list[Scored]:
    """Return examples of answers of a quality q, cut at those lengths and whole at 350 tokens.

    P(win or tie) is sigmoid(q), or a throw of a coin with that chance. log_odds: from q, and the reading without it, to
    what the model said. The mean log-probability is q / 4 - 1.5.
    """
    source = random.Random(seed)  # noqa: S311 -- a test's data, no secret
    found = []
    for prompt in range(prompts):
        for answer in range(answers):
            quality = source.gauss(0, 1.5)
            came = sigmoid(quality)
            if coins:
                came = float(source.random() < came)
            for tokens, final in [*((cut, False) for cut in cuts), (350, True)]:
                blank = Reading(0.0, tokens, final, min(0.0, quality / 4 - 1.5), -5.0)
                said = log_odds(quality, blank)
                reading = Reading(said, tokens, final, blank.mean_log_probability, blank.least_log_probability)
                found.append(Scored(f"{first}{prompt}", "sums", answer, reading, came, came > 0.5, 0.9))
    return found
