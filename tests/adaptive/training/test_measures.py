"""The figures of a calibration report, against ones worked out by hand or by scikit-learn."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from adaptive.calibration import Reading
from adaptive.training.equal_mass import equal_mass
from adaptive.training.measures import POSITIONS, Measured, measure, position_of
from adaptive.training.scored import Scored

from .scores import scored

END = Reading(0.0, 350, final=True)


def examples_of(rows: Sequence[tuple[str, int, float, bool]]) -> list[Scored]:
    """From prompt, answer, share and passed."""
    return [Scored(prompt, "x", answer, END, came, passed) for prompt, answer, came, passed in rows]


def at_the_end(rows: Sequence[tuple[str, int, float, bool]], said: Sequence[float], bins: int = 10) -> Measured:
    (found,) = measure(examples_of(rows), said, bins=bins, resamples=50)
    return found


@pytest.mark.parametrize(
    ("tokens", "position"),
    [(0, 0), (15, 0), (16, 32), (48, 32), (49, 64), (64, 64), (96, 64), (97, 128), (192, 128), (193, 256), (900, 256)],
)
def test_an_example_counts_at_the_position_it_is_nearest_to(tokens: int, position: int) -> None:
    assert position_of(Reading(0.0, tokens, final=False)) == position
    assert position_of(Reading(0.0, tokens, final=True)) is None


def test_every_position_with_examples_is_there_in_order() -> None:
    examples = scored(5, cuts=(0, 32, 64, 128, 256))
    found = measure(examples, [0.5] * len(examples), resamples=20)
    assert tuple(each.position for each in found) == POSITIONS
    assert {(each.examples, each.prompts) for each in found} == {(40, 5)}
    some = [example for example in examples if example.reading.tokens != 64]
    assert [each.position for each in measure(some, [0.5] * len(some), resamples=20)] == [0, 32, 128, 256, None]
    assert measure([], []) == ()


def test_ece_and_brier_by_hand() -> None:
    rows = [("a", 0, 0.0, False), ("a", 1, 1.0, True), ("b", 0, 0.5, False), ("b", 1, 1.0, True)]
    found = at_the_end(rows, [0.2, 0.2, 0.9, 0.9], bins=2)
    # Bins: said 0.2, came 0.5; said 0.9, came 0.75.
    assert found.ece.value == pytest.approx((2 * 0.3 + 2 * 0.15) / 4)
    assert found.brier.value == pytest.approx((0.04 + 0.64 + 0.16 + 0.01) / 4)
    assert found.target.value == 0.625
    assert found.brier_of_mean.value == pytest.approx((0.625**2 + 2 * 0.375**2 + 0.125**2) / 4)
    assert [(each.said, each.came.value, each.examples) for each in found.bins] == [(0.2, 0.5, 2), (0.9, 0.75, 2)]


def test_what_comes_as_often_as_it_was_said_is_calibrated_and_the_opposite_is_not() -> None:
    examples = scored(60, cuts=())
    (right,) = measure(examples, [example.win_or_tie for example in examples], resamples=50)
    (wrong,) = measure(examples, [1 - example.win_or_tie for example in examples], resamples=50)
    assert right.ece.value < 1e-9
    assert (right.brier.value, right.passed.auroc.value, right.win_or_tie.pairs.value) == (0.0, 1.0, 1.0)
    assert wrong.ece.value > 0.3
    assert wrong.brier.value > wrong.brier_of_mean.value
    assert (wrong.passed.auroc.value, wrong.win_or_tie.pairs.value) == (0.0, 0.0)


def test_a_score_that_is_always_the_same_ranks_as_chance_does() -> None:
    examples = scored(10, cuts=())
    (found,) = measure(examples, [0.4] * len(examples), resamples=50)
    assert (found.passed.auroc.value, found.win_or_tie.pairs.value, len(found.bins)) == (0.5, 0.5, 1)


rows_ = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()),
    min_size=2,
    max_size=40,
)


@given(rows_, st.integers(0, 1000))
def test_auroc_pairs_and_brier_are_what_others_make_of_them(
    rows: list[tuple[str, int, float, bool]], seed: int
) -> None:
    source = random.Random(seed)  # noqa: S311 -- a test's data, no secret
    said = [source.choice([0.1, 0.3, 0.5, 0.9]) for _ in rows]
    (found,) = measure(examples_of(rows), said, resamples=3)
    passed = [row[3] for row in rows]
    assert found.passed.auroc.value == pytest.approx(
        roc_auc_score(passed, said) if len(set(passed)) == 2 else float("nan"), nan_ok=True
    )
    shares = [row[2] for row in rows]
    assert found.brier.value == pytest.approx(np.mean([(p - t) ** 2 for p, t in zip(said, shares, strict=True)]))
    if set(shares) <= {0.0, 1.0}:
        assert found.brier.value == pytest.approx(brier_score_loss(shares, said, pos_label=1))
    won = count = 0.0
    for (one, p), (other, q) in itertools.combinations(zip(rows, said, strict=True), 2):
        if one[0] == other[0] and one[1] != other[1] and one[2] != other[2]:
            count += 1
            won += 0.5 if p == q else float((p > q) == (one[2] > other[2]))
    assert found.win_or_tie.count == count
    assert found.win_or_tie.pairs.value == pytest.approx(won / count if count else float("nan"), nan_ok=True)


def test_the_interval_is_over_prompts_and_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(20):
        examples = scored(40, answers=4, cuts=(), seed=seed)
        (found,) = measure(examples, [0.5] * len(examples), resamples=200, seed=seed)
        assert found.target.low is not None
        assert found.target.high is not None
        held += found.target.low <= 0.5 <= found.target.high
    assert held >= 16  # by chance fewer in about 3 of 1000 such tests


def test_one_prompt_alone_says_nothing_of_others() -> None:
    one = at_the_end([("a", 0, 0.0, False), ("a", 1, 1.0, True)], [0.2, 0.8])
    assert one.passed.auroc.value == 1.0
    assert (one.passed.auroc.low, one.passed.auroc.high) == (1.0, 1.0)  # resampling one prompt gives that prompt
    plain = json.loads(json.dumps(at_the_end([("a", 0, 0.0, False)], [0.2]).to_plain(), allow_nan=False))
    assert plain["passed"]["auroc"] == {"value": None, "low": None, "high": None}
    assert plain["position"] is None


def test_as_many_probabilities_as_examples() -> None:
    with pytest.raises(ValueError, match="1 probabilities for 2 examples"):
        measure(examples_of([("a", 0, 0.0, False), ("a", 1, 1.0, True)]), [0.5])


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.7]) | st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 12))
def test_bins_of_equal_mass_go_with_the_values_and_never_part_equals(values: list[float], most: int) -> None:
    bins = equal_mass(np.array(values), most).tolist()
    assert sorted(set(bins)) == list(range(max(bins) + 1))
    assert max(bins) < most
    for (one, of_one), (other, of_other) in itertools.combinations(zip(values, bins, strict=True), 2):
        assert of_one == of_other or (one < other) == (of_one < of_other)
        assert one != other or of_one == of_other


def test_bins_of_different_values_hold_about_as_many_each() -> None:
    bins = equal_mass(np.arange(103, dtype=np.float64), 10)
    assert set(np.bincount(bins).tolist()) <= {10, 11}
