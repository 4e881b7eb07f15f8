"""When two answers to the same request are the same: everything but what must differ between any two answers."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any, Final

# Drawn anew for every answer, or the time of it.
_OWN_TO_EACH_ANSWER: Final = frozenset(
    {"id", "call_id", "item_id", "request_id", "response_id", "created", "created_at", "completed_at"}
)
# Numbers the events of a stream. How many tokens vLLM puts into one event depends on how busy the machine is.
_OWN_TO_EACH_STREAM: Final = frozenset({"sequence_number"})
_CONCATENATED: Final = frozenset({"content", "text", "arguments", "reasoning", "delta", "partial_json", "thinking"})
_LOGPROB_TOLERANCE: Final = 1e-3


def assert_same_answer(one: Any, other: Any, at: str = "answer") -> None:
    """Fail, naming the place, unless `other` says what `one` says. Floats may differ by 0.001: batches are summed in
    another order."""
    assert type(one) is type(other), f"{at}: {one!r} and {other!r}"
    if isinstance(one, dict):
        assert list(one) == list(other), at
        for key, value in one.items():
            if key in _OWN_TO_EACH_ANSWER:
                assert type(value) is type(other[key]), f"{at}.{key}"
            elif key not in _OWN_TO_EACH_STREAM:
                assert_same_answer(value, other[key], f"{at}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), f"{at}: {one!r} and {other!r}"
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same_answer(left, right, f"{at}[{index}]")
    elif isinstance(one, float):
        assert math.isclose(one, other, abs_tol=_LOGPROB_TOLERANCE), f"{at}: {one} and {other}"
    else:
        assert one == other, at


def told(events: list[Any]) -> list[Any]:
    """Return what a stream says, however many tokens each event holds: runs of events of one type become one event."""
    merged = []
    for _, run in groupby(events, key=lambda event: event.get("type", "chunk") if isinstance(event, dict) else event):
        whole, *rest = run
        for event in rest:
            whole = _joined(whole, event, "")
        merged.append(whole)
    return merged


def _joined(one: Any, other: Any, key: str) -> Any:
    """Return two values of `key` in consecutive events as one event would have held them."""
    if one is None or other is None:
        return one if other is None else other
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: _joined(one.get(name), other.get(name), name) for name in {**one, **other}}
    if isinstance(one, list) and isinstance(other, list):
        return _joined_lists(one, other, key)
    if isinstance(one, str) and key in _CONCATENATED:
        return one + other
    return other


def _joined_lists(one: list[Any], other: list[Any], key: str) -> list[Any]:
    entries = one + other
    if not all(isinstance(entry, dict) and "index" in entry for entry in entries):
        return entries
    by_index: dict[int, Any] = {}
    for entry in entries:
        index = entry["index"]
        by_index[index] = _joined(by_index[index], entry, key) if index in by_index else entry
    return [by_index[index] for index in sorted(by_index)]
