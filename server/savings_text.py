"""How the report writes numbers and times."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final

from server.panels import Unit

NO_DATA: Final = "no data"
_MINUTE_S: Final = 60.0
_THOUSAND: Final = 1000.0
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
        return f"{_figures(round(value * 100, 1))} %"
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
