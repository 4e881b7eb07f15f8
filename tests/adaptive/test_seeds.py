"""One seed per candidate, all from the request's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adaptive.seeds import candidate_seed

seeds = st.integers(min_value=-(2**70), max_value=2**70)


@given(seeds, st.integers(min_value=0, max_value=64))
def test_a_seed_is_one_that_the_engine_takes_and_always_the_same(seed: int, candidate: int) -> None:
    assert 0 <= candidate_seed(seed, candidate) < 2**63
    assert candidate_seed(seed, candidate) == candidate_seed(seed, candidate)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_the_first_candidate_has_the_requests_own_seed(seed: int) -> None:
    assert candidate_seed(seed, 0) == seed


@given(seeds)
def test_candidates_of_one_request_and_of_its_neighbour_share_no_seed(seed: int) -> None:
    drawn = [candidate_seed(seed + step, candidate) for step in (0, 1) for candidate in range(64)]
    assert len(set(drawn)) == len(drawn)


def test_seeds_stay_the_same_from_version_to_version() -> None:
    assert [candidate_seed(42, candidate) for candidate in range(3)] == [42, 7845810475459835116, 1131681658350916944]
