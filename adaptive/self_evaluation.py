"""Self-evaluation: from the log-probabilities of two label tokens to P(win or tie).

After arXiv 2410.02725: a fixed question is appended to a complete or partial response, and the model's own next token
says whether it would do better if it started over. Pure arithmetic; it does not know how the question reaches a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# Log-probabilities come from a float32 softmax, so the largest may lie a rounding error above zero.
_ROUNDING: Final = 1e-4


@dataclass(frozen=True, slots=True)
class SelfEvaluationQuestion:
    """The question, asked in a user turn after the response, and its two labels, each in one spelling or several.

    `win_or_tie` is the answer that speaks for the response ("No", I would not do better), `loss` the one against it.
    Each spelling must be one token of the model's tokenizer.
    """

    text: str
    win_or_tie: tuple[str, ...]
    loss: tuple[str, ...]


LITERAL_QUESTION: Final = SelfEvaluationQuestion(
    text='Would you do better if you started over? ("Yes." or "No.")', win_or_tie=("No",), loss=("Yes",)
)
"""The wording remembered from the paper; it needs no training, and a model may not answer it: see `label_mass`."""


@dataclass(frozen=True, slots=True)
class SelfEvaluation:
    """A score. The first two numbers lie in [0, 1].

    p_win_or_tie: chance that a fresh response would not be better, given that the answer is one of the two labels.
    label_mass: chance that it is one of the two at all; where that is tiny the score means nothing.
    log_odds: of p_win_or_tie, natural; exact where p rounds to 0 or 1, and infinite where one label is impossible.
    """

    p_win_or_tie: float
    label_mass: float
    log_odds: float


def self_evaluate(logprob_win_or_tie: float, logprob_loss: float) -> SelfEvaluation:
    """Return the score for the natural log-probabilities of the two labels, over the full vocabulary.

    Two impossible labels (both minus infinity) give 0.5 (log-odds 0) with a label mass of 0: nothing was said either
    way. Raises `ValueError` for what cannot be a log-probability: NaN, or more than zero.
    """
    for logprob in (logprob_win_or_tie, logprob_loss):
        if math.isnan(logprob) or logprob > _ROUNDING:
            raise ValueError(f"{logprob} is no log-probability; they are at most 0. Ask for raw_logprobs.")
    larger = max(logprob_win_or_tie, logprob_loss)
    if larger == -math.inf:
        return SelfEvaluation(p_win_or_tie=0.5, label_mass=0.0, log_odds=0.0)
    # Relative to the larger one: far below zero both exponentials would be 0, and their ratio undefined.
    win_or_tie = math.exp(logprob_win_or_tie - larger)
    loss = math.exp(logprob_loss - larger)
    mass = min(1.0, math.exp(logprob_win_or_tie) + math.exp(logprob_loss))
    return SelfEvaluation(win_or_tie / (win_or_tie + loss), mass, logprob_win_or_tie - logprob_loss)
