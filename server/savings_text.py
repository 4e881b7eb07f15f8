"""How the report writes numbers and times."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Final

from server.panels import Unit

NO_DATA: Final = "no data"
_MINUTE_S: Final = 60.0
_THOUSAND: Final = 1000.0
_HOUR_S: Final = 60 * _MINUTE_S
_DAY_S: Final = 24 * _HOUR_S
_YEAR_S: Final = 365 * _DAY_S
_STEPS_S: Final = (
    *(1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(_MINUTE_S * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(_HOUR_S * hours for hours in (1, 2, 3, 6, 12)),
    *(_DAY_S * days for days in (1, 2, 4, 7, 14, 30, 60, 120, 365)),
)
_MARKS: Final = 6
_SUFFIXES: Final = {
    Unit.TOKENS_PER_S: " tokens/s",
    Unit.ENGINE_SECONDS_PER_S: " s/s",
    Unit.PER_MINUTE: " per minute",
}


def number(value: float | None, unit: Unit) -> str:
    """Return a value with its unit, to three figures."""
    return NO_DATA if value is None else axis_number(value, unit) + _SUFFIXES.get(unit, "")


def axis_number(value: float, unit: Unit) -> str:
    """Return a value as it stands at an axis that names the unit."""
    if unit is Unit.SHARE:
        return f"{_figures(value * 100)} %"
    if unit is Unit.SECONDS:
        return _seconds(value)
    if unit is Unit.SAMPLES:
        return f"{value:,.0f}"
    return _short(value)


def span(start: float, end: float) -> str:
    """Return a span of time in this machine's time zone: `2026-05-04 14:00 to 15:00 (UTC)`."""
    first, last = (datetime.fromtimestamp(each).astimezone() for each in (start, end))
    day = "" if first.date() == last.date() else f"{last:%Y-%m-%d} "
    seconds = ":%S" if end - start < 10 * _MINUTE_S else ""
    return f"{first:%Y-%m-%d %H:%M{seconds}} to {day}{last:%H:%M{seconds}} ({last:%Z})"


def clock_marks(start: float, end: float) -> list[tuple[float, str]]:
    """Return round times between two Unix times, one to six of them, each with its text in this machine's time zone.

    No two texts are alike. Where the clocks change in between, what follows is round in the zone of the start.
    """
    step = next((step for step in _STEPS_S if end - start < _MARKS * step), end - start)
    offset = datetime.fromtimestamp(start).astimezone().utcoffset() or timedelta()
    first = math.ceil((start + offset.total_seconds()) / step) * step - offset.total_seconds()
    times = [first + number * step for number in range(_MARKS) if first + number * step <= end]
    shape = "%H:%M:%S" if step < _MINUTE_S else "%H:%M" if end - start < _DAY_S else "%m-%d %H:%M"
    if step >= _DAY_S:
        shape = "%m-%d" if end - start < _YEAR_S else "%Y-%m-%d"
    return [(time, datetime.fromtimestamp(time).astimezone().strftime(shape)) for time in times]


def _seconds(value: float) -> str:
    if 0 < abs(value) < 1:
        return f"{_figures(value * _THOUSAND)} ms"
    if abs(value) < 2 * _MINUTE_S:
        return f"{_figures(value)} s"
    return f"{_figures(value / _MINUTE_S)} min"


def _short(value: float) -> str:
    for size, letter in ((_THOUSAND**3, " G"), (_THOUSAND**2, " M"), (_THOUSAND, " k")):
        if abs(value) >= 10 * size or (abs(value) >= size and letter != " k"):
            return f"{_figures(value / size)}{letter}"
    return _figures(value)


def _figures(value: float) -> str:
    """Return three figures, without exponent and without zeros at the end that say nothing."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(decimals, 4)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
