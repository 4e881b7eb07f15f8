"""The training loop, the same for every way: whole answers and one cut of each, a few prompts a step, resumable."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from torch import Tensor

from adaptive.training.examples import Group
from adaptive.training.losses import ranking_loss, win_or_tie_loss
from adaptive.training.packing import Place
from adaptive.training.ways import Trainable

_TIE: Final = 1e-6
_MOST_GRADIENT: Final = 1.0


class TrainingError(Exception):
    """Training cannot be done, or not go on. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a way is trained. All of it is a checkpoint's identity: another recipe does not resume it.

    epochs: times that every prompt is seen. learning_rate: at its highest. warm_up: share of the steps until there.
    groups: prompts a step. ranking: weight of `ranking_loss` for whole answers; cuts have half of it. even: share of
    the prompts whose answers are all equally good that are seen; they teach how hard a prompt is, and nothing else.
    """

    epochs: float
    learning_rate: float
    weight_decay: float = 0.01
    warm_up: float = 0.1
    groups: int = 2
    ranking: float = 1.0
    even: float = 0.3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the learning curve. step: of how many groups were seen so far. loss: mean since the last point.

    validation: loss on prompts that are not trained on; pairs: how often the better of two of their answers has the
    higher score, whole answers and cut ones; None where the point is not of validation.
    """

    step: int
    groups: int
    loss: float
    validation: float | None = None
    pairs_whole: float | None = None
    pairs_cut: float | None = None


@dataclass(frozen=True, slots=True)
class Examined:
    """What training did. curve: its points, in order. best: the step whose state is kept."""

    curve: tuple[Point, ...]
    best: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The places of one group with their targets, (places,), and which of them are whole answers, and cut ones."""

    places: tuple[Place, ...]
    targets: Tensor
    whole: Tensor
    cut: Tensor


def batch_of(group: Group, source: random.Random) -> Batch:
    """Return every answer whole and after one of its cuts, and once nothing at all: what the prompt alone says."""
    places, targets, kinds = [Place(0, 0)], [fmean(answer.win_or_tie for answer in group.answers)], [0]
    for index, answer in enumerate(group.answers):
        if not answer.token_ids:
            continue
        *cuts, whole = answer.cuts
        for tokens, kind in ((whole, 1), (source.choice(cuts), 2) if cuts else (whole, 0)):
            if kind:
                places.append(Place(index, tokens))
                targets.append(answer.win_or_tie)
                kinds.append(kind)
    kind_of = torch.tensor(kinds)
    return Batch(tuple(places), torch.tensor(targets), kind_of == 1, kind_of == 2)  # noqa: PLR2004 -- as above


def loss_of(log_odds: Tensor, batch: Batch, ranking: float) -> Tensor:
    """Return what is minimised on one group."""
    targets = batch.targets.to(log_odds.device)
    loss = win_or_tie_loss(log_odds, targets)
    for chosen, weight in ((batch.whole, ranking), (batch.cut, ranking / 2)):
        if weight:
            loss = loss + weight * ranking_loss(log_odds[chosen], targets[chosen])
    return loss


def train(
    trainable: Trainable,
    groups: Sequence[Group],
    validation: Sequence[Group],
    recipe: Recipe,
    *,
    state: Path | None,
    every: int,
    tell: Callable[[Point, int], None],
) -> Examined:
    """Train, and leave the module in the state that did best in validation.

    validation: prompts of the training split that are kept out for this. state: a file that training is saved to at
    every validation, and resumed from. every: steps between validations. tell: is given each point and the number of
    steps. Raises `TrainingError`.
    """
    order = _order(groups, recipe)
    if not order or not validation:
        raise TrainingError("There are no prompts to train on, or none to validate on: sample more of them.")
    steps = math.ceil(len(order) / recipe.groups)
    parameters = [each for each in trainable.module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, recipe.warm_up))
    run = _Run(trainable, optimizer, schedule, recipe, state, steps)
    run.resume()
    losses: list[float] = []
    for step in range(run.step, steps):
        chosen = order[step * recipe.groups : (step + 1) * recipe.groups]
        losses.append(run.learn(chosen, step))
        last = step + 1 == steps
        if (step + 1) % every == 0 or last:
            run.validate(step + 1, fmean(losses), validation)
            losses.clear()
            tell(run.curve[-1], steps)
    trainable.module.load_state_dict(run.best_state, strict=False)
    return Examined(tuple(run.curve), run.best)


class _Run:
    """Everything that changes while training goes on, so that it can be saved in one piece."""

    def __init__(
        self,
        trainable: Trainable,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        recipe: Recipe,
        state: Path | None,
        steps: int,
    ) -> None:
        self._trainable, self._recipe, self._state, self._steps = trainable, recipe, state, steps
        self._optimizer, self._schedule = optimizer, schedule
        self.step = 0
        self.curve: list[Point] = []
        self.best = 0
        self.best_state: dict[str, Tensor] = trained_state(trainable)

    def resume(self) -> None:
        """Take up what was saved, if anything was. Raises `TrainingError` for what was saved by another recipe."""
        if self._state is None or not self._state.exists():
            return
        saved: dict[str, Any] = torch.load(self._state, map_location="cpu", weights_only=True)
        if saved["recipe"] != asdict(self._recipe) or saved["steps"] != self._steps:
            raise TrainingError(
                f"{self._state} is of another recipe or other data; remove it, or give another directory."
            )
        self._trainable.module.load_state_dict(saved["module"], strict=False)
        self._optimizer.load_state_dict(saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        self.step, self.best, self.best_state = saved["step"], saved["best"], saved["best_state"]
        self.curve = [Point(**point) for point in saved["curve"]]

    def learn(self, groups: Sequence[Group], step: int) -> float:
        """Take one step; return its mean loss."""
        total = 0.0
        for place, group in enumerate(groups):
            batch = batch_of(group, random.Random(f"{self._recipe.seed} {step} {place}"))  # noqa: S311 -- no secret
            loss = loss_of(self._trainable.log_odds(group, batch.places), batch, self._recipe.ranking)
            (loss / len(groups)).backward()
            total += float(loss.detach()) / len(groups)
        parameters = [each for each in self._trainable.module.parameters() if each.requires_grad]
        torch.nn.utils.clip_grad_norm_(parameters, _MOST_GRADIENT)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return total

    def validate(self, step: int, loss: float, groups: Sequence[Group]) -> None:
        """Add a point to the curve, remember the best state, and save."""
        found = validated(self._trainable, groups, self._recipe)
        self.curve.append(Point(step, step * self._recipe.groups, loss, *found))
        losses = [point.validation for point in self.curve if point.validation is not None]
        if losses[-1] <= min(losses):
            self.best, self.best_state = step, trained_state(self._trainable)
        if self._state is not None:
            self._save(step)

    def _save(self, step: int) -> None:
        assert self._state is not None  # noqa: S101 -- for the type checker
        value = {
            "recipe": asdict(self._recipe),
            "steps": self._steps,
            "module": trained_state(self._trainable),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "step": step,
            "best": self.best,
            "best_state": self.best_state,
            "curve": [asdict(point) for point in self.curve],
        }
        written = self._state.with_suffix(".writing")
        torch.save(value, written)
        os.replace(written, self._state)  # noqa: PTH105 -- a kill between the two leaves the older state


def validated(
    trainable: Trainable, groups: Sequence[Group], recipe: Recipe
) -> tuple[float, float | None, float | None]:
    """Return the mean loss on groups, and how often pairs are ranked rightly: whole answers, and cut ones."""
    losses: list[float] = []
    whole: list[float] = []
    cut: list[float] = []
    with torch.no_grad():
        for group in groups:
            batch = batch_of(group, random.Random(f"{recipe.seed} {group.id}"))  # noqa: S311 -- the same every time
            log_odds = trainable.log_odds(group, batch.places)
            losses.append(float(loss_of(log_odds, batch, recipe.ranking)))
            for found, chosen in ((whole, batch.whole), (cut, batch.cut)):
                found += [share for share in (_ranked(log_odds[chosen], batch.targets[chosen]),) if share is not None]
    return fmean(losses), fmean(whole) if whole else None, fmean(cut) if cut else None


def trained_state(trainable: Trainable) -> dict[str, Tensor]:
    """Return a copy of what is trained, with the numbers that belong to it; frozen parameters are left out."""
    # A tied head is a second name of the embeddings, and is left out with them.
    everything = trainable.module.named_parameters(remove_duplicate=False)
    frozen = {name for name, each in everything if not each.requires_grad}
    return {name: value.detach().clone() for name, value in trainable.module.state_dict().items() if name not in frozen}


def write_curve(file: Path, curve: Sequence[Point]) -> None:
    """Write the learning curve, a line of JSON for each point."""
    file.write_text("".join(json.dumps(asdict(point)) + "\n" for point in curve), encoding="utf-8")


def _ranked(log_odds: Tensor, targets: Tensor) -> float | None:
    """Return the share of pairs with unequal targets whose better one is higher, ties half; None without any."""
    better = targets[:, None] - targets[None, :] > _TIE
    if not better.any():
        return None
    margins = (log_odds[:, None] - log_odds[None, :]).cpu()[better]
    return float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean())


def _order(groups: Sequence[Group], recipe: Recipe) -> list[Group]:
    """Return the groups in the order in which they are seen, epoch after epoch."""
    source = random.Random(recipe.seed)  # noqa: S311 -- no secret
    order: list[Group] = []
    for share in _epochs(recipe.epochs):
        seen = [group for group in groups if group.teaches or source.random() < recipe.even]
        source.shuffle(seen)
        order += seen[: math.ceil(share * len(seen))]
    return order


def _epochs(epochs: float) -> Iterator[float]:
    while epochs > _TIE:
        yield min(1.0, epochs)
        epochs -= 1.0


def _rate(step: int, steps: int, warm_up: float) -> float:
    """Return the share of the highest learning rate: up in a line, down in half a cosine."""
    rising = max(1, int(warm_up * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
