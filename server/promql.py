"""The few shapes that the board's queries have, as PromQL text.

A zero that is true is drawn: nothing was pruned yet. What cannot be known is not: a share of nothing, or a quantile of
no observation, is NaN in PromQL, so a divisor is `> 0` and a quantile `>= 0`, which drops it, and the panel says "no
data".
"""

from __future__ import annotations

from typing import Final

PROXIES: Final = 'instance=~"$proxy"'
ENGINES: Final = 'instance=~"$engine"'
RATE: Final = "$__rate_interval"
RANGE: Final = "$__range"
HOUR: Final = "1h"

# Without labels of its own, so every proxy has it from its start.
_ALWAYS_THERE: Final = "preamble_spent_tokens_total"


def rate(series: str, by: str = "", *, where: str = PROXIES, window: str = RATE) -> str:
    """Return the growth of a counter per second, all instances together."""
    return f"sum{_by(by)}(rate({series}{{{where}}}[{window}]))"


def grown(series: str, by: str = "", *, where: str = PROXIES, window: str = RANGE) -> str:
    """Return the growth of a counter in the window, all instances together."""
    return f"sum{_by(by)}(increase({series}{{{where}}}[{window}]))"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


def per_minute(series: str, by: str, *, where: str = PROXIES) -> str:
    """Return events per minute by one label; a single zero while no such event has happened yet."""
    return or_zero(f"60 * {rate(series, by, where=where)}", by)


def or_zero(expression: str, label: str) -> str:
    """Return the expression, or a zero where it finds nothing and a proxy is scraped: then nothing happened yet."""
    zero = f"0 * sum({_ALWAYS_THERE}{{{PROXIES}}})"
    return f'{expression} or on () label_replace({zero}, "{label}", "none", "", "")'


def share(part: str, whole: str) -> str:
    """Return part / whole, nothing where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def unspent_share(spent: str, full: str) -> str:
    """Return what is left of `full` after `spent`, as a share of it; nothing where `full` is 0."""
    return f"1 - {share(spent, full)}"


def mean(histogram: str, by: str = "", *, window: str) -> str:
    """Return the mean of a histogram's observations in the window, nothing without any."""
    return share(grown(f"{histogram}_sum", by, window=window), grown(f"{histogram}_count", by, window=window))


def quantile(below: float, histogram: str, *, where: str = PROXIES, window: str = RATE) -> str:
    """Return the value that the share `below` of a histogram's observations does not exceed, nothing without any."""
    return f"histogram_quantile({below}, {rate(f'{histogram}_bucket', 'le', where=where, window=window)}) >= 0"
