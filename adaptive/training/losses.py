"""What is minimised: being right about P(win or tie), and about which of two answers to one prompt is better."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_TIE: Final = 1e-6


def win_or_tie_loss(log_odds: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy with soft targets (arXiv 2410.02725 trains on the label token alone).

    log_odds, targets: shape (examples,); targets from 0 to 1.
    """
    return functional.binary_cross_entropy_with_logits(log_odds, targets)


def ranking_loss(log_odds: Tensor, targets: Tensor) -> Tensor:
    """Return the mean logistic loss over all pairs of one prompt's examples whose targets differ; 0 without any.

    The cross-entropy alone is mostly spent on how hard the prompt is, which ranks nothing.
    """
    better = targets[:, None] - targets[None, :] > _TIE
    if not better.any():
        return torch.zeros((), device=log_odds.device)
    margins = log_odds[:, None] - log_odds[None, :]
    return functional.softplus(-margins[better]).mean()
