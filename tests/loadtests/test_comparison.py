"""A verdict follows from the rounds, and from nothing else."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.comparison import Measurement, Mode, bootstrap_median, compare, doubts, typical
from loadtests.generator import Result


def measured(
    number: int,
    target: str,
    cpu_ms: float | None,
    *,
    mode: Mode = Mode.REQUESTS,
    pieces: float = 64.0,
    errors: dict[str, int] | None = None,
    cpu_agrees: bool = True,
) -> Measurement:
    result = Result(
        requests=10,
        errors=errors or {},
        seconds=1.0,
        requests_per_s=10.0,
        latency_ms={"p50": 1.0},
        first_byte_ms={},
        pieces=pieces,
        reconnects=0,
        cpu_ms=cpu_ms,
        cpu_agrees=cpu_agrees,
    )
    return Measurement(number, target, mode, result)


def rounds(*pairs: tuple[float, float]) -> list[Measurement]:
    return [measured(n, name, ms) for n, pair in enumerate(pairs) for name, ms in zip(("a", "b"), pair, strict=True)]


def test_the_ratio_is_the_median_of_the_ratios_inside_each_round() -> None:
    verdict = compare(rounds((3, 1), (60, 10), (8, 4)), Mode.REQUESTS, target="a", baseline="b", allowed=4.0)
    assert verdict.rounds == (3.0, 6.0, 2.0)
    assert verdict.ratio.median == 3.0
    assert verdict.met


def test_a_ratio_above_what_is_allowed_is_missed_and_one_that_equals_it_is_met() -> None:
    for allowed, met in ((2.99, False), (3.0, True)):
        verdict = compare(rounds((3, 1), (3, 1)), Mode.REQUESTS, target="a", baseline="b", allowed=allowed)
        assert verdict.met is met


@pytest.mark.parametrize("lacking", [None, 0.0])
def test_a_round_without_cpu_time_is_an_error_that_names_it(lacking: float | None) -> None:
    taken = [measured(0, "a", 1.0), measured(0, "b", lacking)]
    with pytest.raises(ValueError, match="round 0 has no CPU time of both a and b"):
        compare(taken, Mode.REQUESTS, target="a", baseline="b", allowed=1.0)


@settings(max_examples=20)
@given(st.lists(st.floats(min_value=0.1, max_value=100), min_size=1, max_size=12))
def test_the_interval_holds_the_median_and_lies_within_the_values(values: list[float]) -> None:
    interval = bootstrap_median(values)
    assert min(values) <= interval.low <= interval.high <= max(values)
    assert interval.median == median(values)
    assert interval == bootstrap_median(values)


def test_the_interval_of_rounds_that_agree_is_narrow() -> None:
    interval = bootstrap_median([3.0] * 10 + [9.0])
    assert (interval.low, interval.high) == (3.0, 3.0)


def test_typical_figures_are_medians_of_one_target_in_one_mode() -> None:
    taken = [*rounds((1, 9), (2, 9), (30, 9)), measured(0, "a", 500.0, mode=Mode.STREAMS)]
    assert typical(taken, "a", Mode.REQUESTS, lambda r: r.cpu_ms) == 2.0
    assert typical(taken, "c", Mode.REQUESTS, lambda r: r.cpu_ms) is None


def test_errors_coalesced_chunks_and_accounts_that_differ_are_each_named() -> None:
    taken = [
        measured(0, "a", 1.0, errors={"status 503": 2}),
        measured(1, "a", 1.0, cpu_agrees=False),
        measured(2, "a", 1.0, mode=Mode.STREAMS, pieces=30.0),
        measured(3, "a", 1.0, mode=Mode.STREAMS, pieces=64.0),
    ]
    found = doubts(taken, 64)
    assert len(found) == 3
    assert "round 1, a, requests: 2 x status 503" in found[0]
    assert "round 2" in found[1]
    assert "30.0 pieces for 64 chunks" in found[2]
