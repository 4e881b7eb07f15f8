"""What the docs page lists of adaptive best-of-N is what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from adaptive.stopping import StopReason
from server.policy import PolicyFields
from server.sampling_metrics import SamplingMetrics
from server.sampling_plan import PassThrough

PAGE = (Path(__file__).resolve().parents[2] / "server" / "README.md").read_text()


@pytest.mark.parametrize("name", PolicyFields.model_fields)
def test_every_policy_field_is_listed(name: str) -> None:
    assert f"\n| `{name}` |" in PAGE


@pytest.mark.parametrize("reason", PassThrough)
def test_every_reason_to_pass_through_is_listed(reason: PassThrough) -> None:
    assert f"`{reason.value}`" in PAGE


def test_every_metric_of_sampling_is_listed_with_its_labels() -> None:
    metrics = vars(SamplingMetrics(CollectorRegistry())).values()
    assert len(metrics) >= 12
    for metric in metrics:
        name = metric._name + ("_total" if isinstance(metric, Counter) else "")
        assert f"| `{name}` | {', '.join(metric._labelnames)}".rstrip() in PAGE


def test_every_reason_to_stop_is_listed_as_a_label() -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith("| `preamble_resampling_decisions_total`"))
    assert not [reason.value for reason in StopReason if reason.value not in row]
