"""The loop: what is seen, what is minimised, what is kept, and how it goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from adaptive.training.examples import Group  # noqa: E402 -- there may be no torch
from adaptive.training.loop import (  # noqa: E402
    Examined,
    Point,
    Recipe,
    TrainingError,
    batch_of,
    loss_of,
    train,
    trained_state,
    validated,
    write_curve,
)
from adaptive.training.packing import Place  # noqa: E402
from adaptive.training.ways import ReadOut  # noqa: E402
from tests.adaptive.training.groups import group as plain_group  # noqa: E402
from tests.adaptive.training.tiny import tiny_model, toy_group, toy_groups  # noqa: E402

RECIPE = Recipe(epochs=3.0, learning_rate=5e-3, groups=2)
SEEN, KEPT_OUT = toy_groups(24), toy_groups(10, first="v")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def read_out(model: Any) -> ReadOut:
    torch.manual_seed(4)
    return ReadOut(model, rows=2)


def ignore(_: Point, __: int) -> None:
    pass


def run(
    way: ReadOut,
    state: Path | None = None,
    recipe: Recipe = RECIPE,
    tell: Callable[[Point, int], None] = ignore,
    *,
    every: int = 6,
) -> Examined:
    return train(way, SEEN, KEPT_OUT, recipe, state=state, every=every, tell=tell)


def test_a_batch_has_nothing_every_whole_answer_and_one_cut_of_each() -> None:
    group = toy_group("g")
    batch = batch_of(group, random.Random(1))  # noqa: S311 -- no secret
    assert batch.places[0] == Place(0, 0)
    assert batch.targets[0] == pytest.approx(sum(each.win_or_tie for each in group.answers) / 4)
    assert not (batch.whole & batch.cut).any()
    assert not batch.whole[0] | batch.cut[0]
    assert int(batch.whole.sum()) == 4
    for place, target, whole, cut in zip(
        batch.places[1:], batch.targets[1:], batch.whole[1:], batch.cut[1:], strict=True
    ):
        answer = group.answers[place.answer]
        assert target == pytest.approx(answer.win_or_tie)
        assert whole == (place.tokens == len(answer.token_ids))
        assert cut == (place.tokens in answer.cuts[:-1])


def test_cuts_are_drawn_anew_and_the_same_from_the_same_source() -> None:
    group = toy_group("g")
    drawn = {batch_of(group, random.Random(seed)).places for seed in range(20)}  # noqa: S311 -- no secret
    assert len(drawn) > 3
    one, other = (batch_of(group, random.Random(5)) for _ in range(2))  # noqa: S311 -- no secret
    assert one.places == other.places


def test_an_answer_of_one_token_has_no_cut_and_one_of_none_is_no_example() -> None:
    group = plain_group([1.0, 0.0, 0.0], [(-0.5,), (-0.1, -0.2), ()])
    batch = batch_of(group, random.Random(1))  # noqa: S311 -- no secret
    assert batch.places == (Place(0, 0), Place(0, 1), Place(1, 2))
    assert batch.whole.tolist() == [False, True, True]


def test_whole_answers_are_ranked_with_the_weight_and_cut_ones_with_half_of_it() -> None:
    batch = batch_of(toy_group("g"), random.Random(1))  # noqa: S311 -- no secret
    wrong = -8 * (batch.targets - 0.5)
    alone = loss_of(wrong, batch, 0.0)
    margin = torch.nn.functional.softplus(8 * (batch.targets.max() - batch.targets[1:].min()))
    torch.testing.assert_close(loss_of(wrong, batch, 2.0), alone + 2.0 * margin + 1.0 * margin)


def test_training_learns_to_tell_good_answers_from_bad_ones(model: Any) -> None:
    way = read_out(model)
    before, *_ = validated(way, KEPT_OUT, RECIPE)
    found = run(way)
    first, last = found.curve[0], found.curve[-1]
    assert last.loss < 0.8 * first.loss
    assert last.validation is not None
    assert last.validation < 0.8 * before
    assert last.pairs_whole is not None
    assert last.pairs_whole > 0.8
    assert (last.step, last.groups) == (36, 72)
    assert [point.step for point in found.curve] == [6, 12, 18, 24, 30, 36]


def test_the_state_that_did_best_is_what_is_left(model: Any) -> None:
    way = read_out(model)
    states: list[dict[str, Any]] = []
    found = run(
        way, recipe=replace(RECIPE, learning_rate=1.0, epochs=2.0), tell=lambda *_: states.append(trained_state(way))
    )
    losses = [point.validation or 0.0 for point in found.curve]
    best = losses.index(min(losses))
    assert found.best == found.curve[best].step
    assert best < len(losses) - 1  # at that rate the last is not the best, or nothing is shown here
    for name, value in trained_state(way).items():
        assert torch.equal(value, states[best][name])
    assert validated(way, KEPT_OUT, RECIPE)[0] == pytest.approx(min(losses))


class Killed(Exception):
    """As by somebody who has waited long enough."""


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_goes_on_to_exactly_the_same_result(model: Any, tmp_path: Path, after: int) -> None:
    whole = read_out(model)
    expected = run(whole, tmp_path / "whole.pt")
    told: list[Point] = []

    def tell(point: Point, _: int) -> None:
        told.append(point)
        if len(told) == after:
            raise Killed

    with pytest.raises(Killed):
        run(read_out(model), tmp_path / "state.pt", tell=tell)
    torch.manual_seed(99)
    again = ReadOut(model, rows=2)  # begins with other numbers, which are replaced
    points: list[Point] = []
    found = run(again, tmp_path / "state.pt", tell=lambda point, _: points.append(point))
    assert found == expected
    assert points == list(expected.curve[after:])
    for name, value in trained_state(whole).items():
        assert torch.equal(value, trained_state(again)[name])
    assert not list(tmp_path.glob("*.writing"))


def test_a_finished_run_is_not_trained_again(model: Any, tmp_path: Path) -> None:
    first = read_out(model)
    expected = run(first, tmp_path / "state.pt")
    again = read_out(model)
    again._model = (None,)  # nothing may be asked
    told: list[Point] = []
    assert run(again, tmp_path / "state.pt", tell=lambda point, _: told.append(point)) == expected
    assert not told
    assert all(torch.equal(value, trained_state(again)[name]) for name, value in trained_state(first).items())


@pytest.mark.parametrize("other", [{"learning_rate": 1e-4}, {"seed": 1}, {"epochs": 2.0}, {"ranking": 0.0}])
def test_another_recipe_does_not_take_up_a_state(model: Any, tmp_path: Path, other: dict[str, Any]) -> None:
    run(read_out(model), tmp_path / "state.pt", replace(RECIPE, epochs=0.5))
    with pytest.raises(TrainingError, match=r"state\.pt is of another recipe or other data; remove it"):
        run(read_out(model), tmp_path / "state.pt", replace(RECIPE, **({"epochs": 0.5} | other)))


@pytest.mark.parametrize(("seen", "kept_out"), [((), KEPT_OUT), (SEEN, ())])
def test_without_prompts_there_is_no_training(model: Any, seen: tuple[Group, ...], kept_out: tuple[Group, ...]) -> None:
    with pytest.raises(TrainingError, match="no prompts to train on, or none to validate on"):
        train(read_out(model), seen, kept_out, RECIPE, state=None, every=5, tell=ignore)


def test_prompts_without_a_better_answer_are_seen_less_often(model: Any) -> None:
    even = tuple(toy_group(f"e{place}", even=True) for place in range(20))
    steps: list[int] = []
    recipe = replace(RECIPE, epochs=1.0, groups=1, even=0.3)
    train(
        read_out(model),
        (*SEEN, *even),
        KEPT_OUT,
        recipe,
        state=None,
        every=100,
        tell=lambda _, all_: steps.append(all_),
    )
    assert len(SEEN) < steps[0] < len(SEEN) + 14


def test_a_part_of_an_epoch_is_a_part_of_the_prompts(model: Any) -> None:
    found = run(read_out(model), recipe=replace(RECIPE, epochs=1.25, groups=1), every=100)
    assert found.curve[-1].step == 24 + 6


def test_the_curve_is_a_line_of_json_for_each_point(tmp_path: Path) -> None:
    curve = (Point(5, 10, 0.7), Point(10, 20, 0.6, 0.65, 0.8, None))
    write_curve(tmp_path / "curve.jsonl", curve)
    lines = (tmp_path / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(point) for point in curve]
