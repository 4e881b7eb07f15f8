"""Calibration maps for tests: hand-made ones, and any."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from adaptive.calibration import CalibrationMap, Feature

STEEP: dict[str, Any] = {
    "features": ["log_odds"],
    "buckets": [
        {"up_to": 32, "weights": [0.5], "bias": 0.25, "knots": [[-1.0, 0.2], [1.0, 0.6]]},
        {"up_to": 64, "weights": [-1.0], "bias": 0.0, "knots": [[-1.0, 0.1], [0.0, 0.5], [1.0, 0.9]]},
        {"final": True, "weights": [1.0], "bias": 0.0, "knots": [[-2.0, 0.05], [2.0, 0.95]]},
    ],
}
"""It turns the order round between 33 and 64 tokens, and beyond."""

LOG_PROBABILITIES: dict[str, Any] = {
    "features": ["log_odds", "mean_log_probability", "least_log_probability", "log_tokens"],
    "buckets": [
        {"up_to": 16, "weights": [1.0, 2.0, 0.5, 0.1], "bias": 0.0, "knots": [[-5.0, 0.0], [5.0, 1.0]]},
        {"final": True, "weights": [0.0, 1.0, 0.0, 0.0], "bias": 0.0, "knots": [[-5.0, 0.0], [5.0, 1.0]]},
    ],
}

_numbers = st.floats(min_value=-20, max_value=20)


@st.composite
def maps(draw: st.DrawFn) -> CalibrationMap:
    features = draw(st.lists(st.sampled_from(list(Feature)), min_size=1, unique=True))
    edges: list[int | None] = [*sorted(draw(st.sets(st.integers(0, 300), min_size=1, max_size=4))), None]
    buckets = []
    for up_to in edges:
        xs = sorted(draw(st.sets(_numbers, min_size=1, max_size=5)))
        ps = sorted(draw(st.lists(st.floats(0, 1), min_size=len(xs), max_size=len(xs))))
        weights = draw(st.lists(_numbers, min_size=len(features), max_size=len(features)))
        bucket = {
            "weights": weights,
            "bias": draw(_numbers),
            "knots": [list(knot) for knot in zip(xs, ps, strict=True)],
        }
        buckets.append(bucket | ({"final": True} if up_to is None else {"up_to": up_to}))
    return CalibrationMap.from_plain({"features": [each.value for each in features], "buckets": buckets})
