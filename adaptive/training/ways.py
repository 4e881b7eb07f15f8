"""The ways to self-evaluation that are trained, behind one interface. See `Way`.

Each is a module with few or many trainable numbers on the same model and the same packed groups, so the loop in
`loop.py` trains any of them, and `scores.py` asks any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from adaptive.engine import TokenIds
from adaptive.training.examples import Group
from adaptive.training.frozen import Judged
from adaptive.training.packing import Packed, Place, pack
from adaptive.training.rows import LabelRows

READ_OUT_SHARPNESS: Final = 4.0
"""The read-out's labels lie where bfloat16 moves in steps of 0.25; their log-odds are stretched by this against it."""


class Way(StrEnum):
    """How a model comes to judge itself."""

    TOKENS = "tokens"
    """New soft tokens after the response, and new label rows that are read after them; all else is frozen."""
    READ_OUT = "read_out"
    """New label rows that are read at every generated token, without a call of their own (after ZIP-RC,
    arXiv 2512.01457)."""
    FINE_TUNED = "fine_tuned"
    """LoRA on all of the model, merged, for the literal question (the recipe of arXiv 2410.02725)."""
    LITERAL = "literal"
    """The literal question to the untouched model; nothing is trained but a calibration map."""


class Trainable(Protocol):
    """What the loop needs of a way. Places are those of a group's packed answers."""

    @property
    def module(self) -> nn.Module:
        """What is trained, and saved in between; all its parameters that want a gradient."""
        ...

    def log_odds(self, group: Group, places: Sequence[Place]) -> Tensor:
        """Return the log-odds of win or tie at each place, (places,), with a gradient where that is enabled."""
        ...


def packed(group: Group) -> Packed:
    """Return a group's prompt and answers as one sequence."""
    return pack(group.prompt_ids, [answer.token_ids for answer in group.answers])


class SoftTokens(nn.Module):
    """Way (a). text: ids of a question in words, from whose embeddings the soft tokens start.

    States after the question are not ordinary ones, so their mean and spread are taken when training begins.
    """

    def __init__(self, model: Any, text: TokenIds, *, rows: int) -> None:
        super().__init__()
        self._model = (model,)  # not a part of this module: it is neither trained nor saved
        start = model.model.embed_tokens.weight[list(text)].detach().float()
        self.embeddings = nn.Parameter(start.clone())
        self.rows = LabelRows(start.shape[1], rows)

    @property
    def module(self) -> nn.Module:
        """All of it."""
        return self

    def states(self, group: Group, places: Sequence[Place]) -> Tensor:
        """Return the last state of the question at each place, (places, hidden)."""
        return Judged(self._model[0], packed(group)).ask(places, self.embeddings)

    def log_odds(self, group: Group, places: Sequence[Place]) -> Tensor:
        """Return the log-odds at each place."""
        found: Tensor = self.rows(self.states(group, places))
        return found


class ReadOut(nn.Module):
    """Way (b). The states are those of the untouched model, so each is computed once and kept, in half precision."""

    def __init__(self, model: Any, *, rows: int) -> None:
        super().__init__()
        self._model = (model,)
        self.rows = LabelRows(model.config.hidden_size, rows, sharpness=READ_OUT_SHARPNESS)
        self._kept: dict[str, dict[Place, Tensor]] = {}

    @property
    def module(self) -> nn.Module:
        """The rows."""
        return self

    def states(self, group: Group, places: Sequence[Place]) -> Tensor:
        """Return the state that produced the last token of each place's response, (places, hidden)."""
        kept = self._kept.setdefault(group.id, {})
        missing = [place for place in places if place not in kept]
        if missing:
            whole = packed(group)
            judged = Judged(self._model[0], whole)
            # Another cut of the same answers is asked for in every epoch, and its state is here already.
            for place in {*missing, *_all_places(group)}:
                kept[place] = judged.states[whole.producer(place)].half().clone()
        return torch.stack([kept[place] for place in places])

    def log_odds(self, group: Group, places: Sequence[Place]) -> Tensor:
        """Return the log-odds at each place."""
        found: Tensor = self.rows(self.states(group, places))
        return found


def _all_places(group: Group) -> Iterator[Place]:
    yield from (Place(index, tokens) for index, answer in enumerate(group.answers) for tokens in answer.cuts)


class LiteralQuestion(nn.Module):
    """Ways (c) and (d). question: from the end of the response's turn to the beginning of the model's answer.

    labels: the ids of the answers for win or tie, and of those for loss. end: the token that ends a turn; `question`
    begins with it, so it is not left at the end of a response that has ended. trained: the model's own parameters want
    a gradient (LoRA), so the whole group is computed with one.
    """

    def __init__(
        self, model: Any, question: TokenIds, win_or_tie: TokenIds, loss: TokenIds, end: int, *, trained: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._ids = list(question), list(win_or_tie), list(loss)
        self._end = end
        self._trained = trained

    @property
    def module(self) -> nn.Module:
        """The model with its adapters."""
        return self

    def log_odds(self, group: Group, places: Sequence[Place]) -> Tensor:
        """Return the log-odds of the labels, as the model answers at each place."""
        labels = self.logits(group, places)
        split = len(self._ids[1])
        return labels[:, :split].logsumexp(1) - labels[:, split:].logsumexp(1)

    def logits(self, group: Group, places: Sequence[Place]) -> Tensor:
        """Return the labels' log-probabilities among all tokens, (places, labels), those of win or tie first."""
        question, win_or_tie, loss = self._ids
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        judged = Judged(base, packed(group), gradient=self._trained and torch.is_grad_enabled())
        states = judged.ask([self._open(group, place) for place in places], base.model.embed_tokens.weight[question])
        logits = nn.functional.linear(states.float(), base.lm_head.weight.float())
        return logits.log_softmax(1)[:, win_or_tie + loss]

    def _open(self, group: Group, place: Place) -> Place:
        """Return the place before the token that ends the turn, if that is the response's last."""
        ids = group.answers[place.answer].token_ids[: place.tokens]
        return Place(place.answer, place.tokens - 1) if ids and ids[-1] == self._end else place
