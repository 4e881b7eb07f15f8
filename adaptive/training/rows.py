"""Label rows: several per label, read as one. Their log-odds are what a score is made of.

With one row per label this is logistic regression on the last hidden state; with several, log-sum-exp makes it the
largest of several linear judgements per side, at no cost to an engine that reads label tokens anyway.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

_LEAST_SPREAD: Final = 1e-3


class LabelRows(nn.Module):
    """Rows for win or tie and for loss, `count` of each, on normalised states.

    mean, spread: of the states that are read, per dimension; they are folded into the rows when a checkpoint is made.
    sharpness: by what the labels' logits are stretched against the log-odds, so that rounding them costs less.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, hidden: int, count: int, *, sharpness: float = 1.0) -> None:
        super().__init__()
        self.count = count
        self.sharpness = sharpness
        self.weight = nn.Parameter(torch.randn(2 * count, hidden) * (0.3 / hidden**0.5))
        self.bias = nn.Parameter(torch.zeros(2 * count))
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("spread", torch.ones(hidden))

    def fit_normaliser(self, states: Tensor) -> None:
        """Take mean and spread from states that are typical. Shape (examples, hidden)."""
        self.mean.copy_(states.float().mean(0))
        self.spread.copy_(states.float().std(0).clamp_min(_LEAST_SPREAD))

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of the labels, those of win or tie first. Shape (examples, 2 * count)."""
        logits = nn.functional.linear((states.float() - self.mean) / self.spread, self.weight, self.bias)
        return self.sharpness * logits

    def forward(self, states: Tensor) -> Tensor:
        """Return the log-odds of win or tie. Shape (examples,)."""
        logits = self.logits(states)
        return (logits[:, : self.count].logsumexp(1) - logits[:, self.count :].logsumexp(1)) / self.sharpness

    def plain(self) -> tuple[Tensor, Tensor]:
        """Return rows, (2 * count, hidden), and offsets, (2 * count,), with the same logits on states as they are."""
        with torch.no_grad():
            rows = self.weight / self.spread
            return self.sharpness * rows, self.sharpness * (self.bias - rows @ self.mean)
