"""From trained modules to the new rows of a checkpoint, and how well they keep out of the model's way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from adaptive.training.checkpoint import NewRows, buried_rows, question_rows, read_out_rows
from adaptive.training.examples import Group
from adaptive.training.frozen import Judged
from adaptive.training.loop import batch_of
from adaptive.training.packing import Place
from adaptive.training.scores import Score, label_log_odds
from adaptive.training.ways import ReadOut, SoftTokens, packed

_AT_ONCE: Final = 512


@dataclass(frozen=True, slots=True)
class Sampled:
    """States of the last layer. ordinary: at which the model writes, (positions, hidden). asked: after the question.

    everything: log of the sum of exp over the logits of all old tokens, at each ordinary state.
    """

    ordinary: Tensor
    everything: Tensor
    asked: Tensor | None


@dataclass(frozen=True, slots=True)
class Clearance:
    """How far the new rows keep from ordinary output, at states that they were not fitted to.

    most_mass: the largest share of all probability that all new tokens together have at any state, as a natural
    logarithm. least_asked_mass: the smallest share that the question's labels have where they are read, likewise; None
    without a question. states: how many ordinary states stand behind it.
    """

    most_mass: float
    least_asked_mass: float | None
    states: int


def sample_states(model: Any, groups: Sequence[Group], tokens: SoftTokens | None, *, seed: int = 0) -> Sampled:
    """Return states of some groups: at every token at which an answer goes on, and after questions."""
    source = random.Random(seed)  # noqa: S311 -- no secret
    ordinary, asked = [], []
    with torch.no_grad():
        for group in groups:
            whole = packed(group)
            judged = Judged(model, whole)
            ordinary.append(judged.states[whole.prompt - 1 :].float().cpu())
            if tokens is not None:
                asked.append(judged.ask(batch_of(group, source).places, tokens.embeddings).float().cpu())
    states = torch.cat(ordinary)
    return Sampled(states, _everything(model, states), torch.cat(asked) if asked else None)


def build(sampled: Sampled, tokens: SoftTokens | None, read_out: ReadOut | None) -> NewRows:
    """Return the rows of a checkpoint with soft tokens, a read-out or both."""
    none = torch.zeros(0, sampled.ordinary.shape[1])
    soft = soft_out = question = read = none
    if tokens is not None and sampled.asked is not None:
        soft = tokens.embeddings.detach().float().cpu()
        soft_out = buried_rows(len(soft), sampled.ordinary)
        rows, offsets = tokens.rows.plain()
        question = question_rows(rows.cpu(), offsets.cpu(), sampled.ordinary, sampled.asked)
    if read_out is not None:
        rows, offsets = read_out.rows.plain()
        read = read_out_rows(rows.cpu(), offsets.cpu(), sampled.ordinary, sampled.everything)
    return NewRows(soft, soft_out, question, read)


def clearance(model: Any, sampled: Sampled, rows: NewRows) -> Clearance:
    """Return how much of the probability new rows take, as the model computes it."""
    head = model.lm_head.weight.detach().cpu()
    new = torch.cat([rows.soft_out, rows.question, rows.read_out]).to(head.dtype)
    most, least = -torch.inf, torch.inf
    for states, old in zip(
        sampled.ordinary.to(head.dtype).split(_AT_ONCE), sampled.everything.split(_AT_ONCE), strict=True
    ):
        most = max(most, float((torch.nn.functional.linear(states, new).float().logsumexp(1) - old).max()))
    if sampled.asked is None or not len(rows.question):
        return Clearance(most, None, len(sampled.ordinary))
    question = rows.question.to(head.dtype)
    for states in sampled.asked.to(head.dtype).split(_AT_ONCE):
        everything = torch.nn.functional.linear(states, torch.cat([head, new])).float().logsumexp(1)
        labels = torch.nn.functional.linear(states, question).float().logsumexp(1)
        least = min(least, float((labels - everything).min()))
    return Clearance(most, least, len(sampled.ordinary))


def _everything(model: Any, states: Tensor) -> Tensor:
    head = model.lm_head.weight.detach().cpu()
    some = states.to(head.dtype).split(_AT_ONCE)
    return torch.cat([torch.nn.functional.linear(each, head).float().logsumexp(1) for each in some])


def question_score(model: Any, rows: NewRows) -> Score:
    """Return what gives the log-odds of the question's labels by the built rows."""
    soft = rows.soft.to(model.dtype).to(model.device)

    def score(group: Group, places: Sequence[Place]) -> Tensor:
        return label_log_odds(Judged(model, packed(group)).ask(places, soft), rows.question.to(model.device))

    return score


def read_out_score(model: Any, rows: NewRows) -> Score:
    """Return what gives the log-odds of the read-out's labels by the built rows."""

    def score(group: Group, places: Sequence[Place]) -> Tensor:
        whole = packed(group)
        states = Judged(model, whole).states[[whole.producer(place) for place in places]]
        return label_log_odds(states, rows.read_out.to(model.device))

    return score
