"""The schedule is bounded and monotone, and starts where the client asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.annealing import CONSTANT, Annealing

from .runs import annealings

requested = st.floats(min_value=0.0, max_value=2.0)


@given(annealings, requested)
def test_the_schedule_is_bounded_and_monotone(annealing: Annealing, requested: float) -> None:
    temperatures = [annealing.temperature(requested, candidate) for candidate in range(64)]
    low, high = sorted((annealing.start * requested, annealing.end * requested))
    assert all(low <= temperature <= high for temperature in temperatures)
    assert temperatures in (sorted(temperatures), sorted(temperatures, reverse=True))


@given(requested)
def test_the_first_candidate_is_drawn_as_the_client_asked(requested: float) -> None:
    assert Annealing().temperature(requested, 0) == requested


@given(requested, st.integers(min_value=0, max_value=64))
def test_a_constant_schedule_is_constant(requested: float, candidate: int) -> None:
    assert CONSTANT.temperature(requested, candidate) == requested


def test_cooling_and_warming_approach_their_end_geometrically() -> None:
    cooling, warming = Annealing(1.0, 0.0, 0.5), Annealing(0.0, 1.0, 0.5)
    assert [cooling.temperature(0.8, k) for k in range(4)] == pytest.approx([0.8, 0.4, 0.2, 0.1])
    assert [warming.temperature(1.0, k) for k in range(4)] == pytest.approx([0.0, 0.5, 0.75, 0.875])
