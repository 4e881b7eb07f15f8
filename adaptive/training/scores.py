"""Scores of answers at chosen lengths, by a trained way, as vLLM will give them: for calibration and for tables.

New rows are rounded to the checkpoint's number format, and so are their logits, because vLLM computes them so: an error
of rounding is the map's to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Final

import torch
from torch import Tensor

from adaptive.calibration import Reading
from adaptive.training.examples import Group
from adaptive.training.packing import Place
from adaptive.training.scored import Scored

POSITIONS: Final = (0, 16, 32, 64, 128, 256)
"""Lengths in tokens at which answers are scored, beside their end."""

Score = Callable[[Group, Sequence[Place]], Tensor]
"""Log-odds at each place, (places,)."""


def label_log_odds(states: Tensor, rows: Tensor) -> Tensor:
    """Return the log-odds that an engine reads from output rows in the states' own number format. Shape (examples,).

    rows: (labels, hidden); the first half is for win or tie.
    """
    logits = torch.nn.functional.linear(states, rows.to(states.dtype)).float()
    half = len(rows) // 2
    return logits[:, :half].logsumexp(1) - logits[:, half:].logsumexp(1)


def places_of(group: Group, positions: Sequence[int] = POSITIONS) -> tuple[Place, ...]:
    """Return where a group's answers are scored: at those lengths, as far as they go on there, and at their ends.

    Before the first token all answers are the same, so that is scored once, as the first answer's.
    """
    places = set()
    for index, answer in enumerate(group.answers):
        length = len(answer.token_ids)
        reached = {tokens for tokens in (*positions, length) if tokens <= length}
        places |= {Place(index if tokens or not length else 0, tokens) for tokens in reached}
    return tuple(sorted(places, key=lambda place: (place.answer, place.tokens)))


def scored(groups: Iterable[Group], score: Score, positions: Sequence[int] = POSITIONS) -> Iterator[Scored]:
    """Yield every scored example of the groups."""
    for group in groups:
        places = places_of(group, positions)
        with torch.no_grad():
            log_odds = score(group, places).tolist()
        for place, value in zip(places, log_odds, strict=True):
            yield _scored(group, place, value)


def _scored(group: Group, place: Place, log_odds: float) -> Scored:
    answer = group.answers[place.answer]
    logprobs = answer.logprobs[: place.tokens]
    reading = Reading(
        log_odds=log_odds,
        tokens=place.tokens,
        final=place.tokens == len(answer.token_ids),
        # As `Reading.of` has it: 0 before the first token.
        mean_log_probability=fmean(logprobs) if logprobs else 0.0,
        least_log_probability=min(logprobs, default=0.0),
    )
    return Scored(group.id, group.family, place.answer, reading, answer.win_or_tie, answer.passed)
