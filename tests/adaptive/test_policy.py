"""A policy is valid once built, and says which field is wrong otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from adaptive.annealing import CONSTANT, Annealing
from adaptive.errors import PolicyError
from adaptive.policy import Checkpoint, Mode, PassThrough, Policy, SelectorName, Streaming


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n_max", {"n_max": 0}),
        ("n_max", {"n_max": 65}),
        ("threshold", {"threshold": 1.01}),
        ("threshold", {"threshold": float("nan")}),
        ("batch_growth", {"batch_growth": 1.0}),
        ("batch_growth", {"batch_growth": 17.0}),
        ("checkpoints[0].tokens", {"checkpoints": (Checkpoint(0, 0.5),)}),
        ("checkpoints[1].tokens", {"checkpoints": (Checkpoint(64, 0.5), Checkpoint(64, 0.5))}),
        ("checkpoints[1].keep", {"checkpoints": (Checkpoint(64, 0.5), Checkpoint(65, 0.0))}),
        ("checkpoints[0].keep", {"checkpoints": (Checkpoint(64, 1.5),)}),
        ("token_budget", {"token_budget": 0}),
        ("deadline_ms", {"deadline_ms": 0}),
        ("commit_at", {"commit_at": 0}),
        ("commit_at", {"commit_at": 5, "streaming": Streaming.WHOLE}),
        ("selector", {"selector": SelectorName.MAJORITY}),
        ("selector", {"selector": SelectorName.MAJORITY, "answer_regex": "a", "answer_json_path": "$.a"}),
        ("answer_regex", {"selector": SelectorName.MAJORITY, "answer_regex": "("}),
        ("answer_json_path", {"selector": SelectorName.MAJORITY, "answer_json_path": "$..a"}),
        ("answer_regex", {"answer_regex": "a"}),
    ],
)
def test_a_wrong_field_is_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy(**values)
    assert caught.value.field == field
    assert str(caught.value) == f"{field} {caught.value.problem}"


@pytest.mark.parametrize(
    ("policy", "temperature", "reason"),
    [
        (Policy(mode=Mode.OFF), 1.0, PassThrough.OFF),
        (Policy(n_max=1), 1.0, PassThrough.SINGLE),
        (Policy(), 0.0, PassThrough.GREEDY),
        (Policy(), 0.1, None),
    ],
)
def test_a_request_that_cannot_gain_is_passed_through(
    policy: Policy, temperature: float, reason: PassThrough | None
) -> None:
    assert policy.pass_through(temperature) is reason


def test_a_client_that_wants_more_choices_than_n_max_gets_them() -> None:
    assert Policy(n_max=2).candidates(choices=5) == 5
    assert Policy(mode=Mode.OFF, n_max=8).candidates(choices=1) == 1


def test_the_exhaustive_policy_spends_everything_and_judges_alike() -> None:
    policy = Policy(n_max=6, deadline_ms=10, token_budget=10, threshold=0.3, selector=SelectorName.FIRST)
    full = policy.exhaustive()
    assert (full.mode, full.n_max, full.annealing) == (Mode.BEST_OF_N, 6, CONSTANT)
    assert (full.checkpoints, full.deadline_ms, full.token_budget) == ((), None, None)
    assert full.selector is SelectorName.FIRST


def test_a_wrong_annealing_names_its_field() -> None:
    with pytest.raises(PolicyError, match=r"annealing\.rate is 2"):
        Annealing(rate=2)


def test_only_the_majority_extracts_an_answer() -> None:
    with pytest.raises(PolicyError, match="extracts no answer"):
        Policy().answer_of()
    assert Policy(selector=SelectorName.MAJORITY, answer_regex=r"\d+").answer_of()("it is 42") == "42"
    assert Policy(selector=SelectorName.MAJORITY, answer_json_path="$.n").answer_of()('{"n": 4}') == "4"
