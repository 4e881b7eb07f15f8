"""Prometheus' HTTP API, as far as the report asks it: a number now, a line over time.

https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx

_TIMEOUT_S: Final = 30.0


class PrometheusError(Exception):
    """Prometheus did not answer, or not what was asked. The message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: labels, and (Unix time, value) in the order of time. Values that are no number are left out."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """The server at `url`, which may have a path. A context manager."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url + "/", timeout=_TIMEOUT_S, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _: BaseException | None, _at: TracebackType | None) -> None:
        self._client.close()

    def at(self, query: str, time: float) -> tuple[Series, ...]:
        """Return the value of each series at that Unix time. Raises `PrometheusError`."""
        result = self._asked("query", {"query": query, "time": repr(time)})
        return _series(result, lambda each: [each["value"]])

    def over(self, query: str, start: float, end: float, step_s: float) -> tuple[Series, ...]:
        """Return each series between two Unix times, both included. Raises `PrometheusError`."""
        asked = {"query": query, "start": repr(start), "end": repr(end), "step": repr(step_s)}
        return _series(self._asked("query_range", asked), lambda each: each["values"])

    def _asked(self, what: str, form: Mapping[str, str]) -> Any:
        try:
            # POST: the longest queries do not fit an address.
            answer = self._client.post(f"api/v1/{what}", data=form)
        except httpx.HTTPError as error:
            raise PrometheusError(
                f"No Prometheus answers at {self.url} ({error or type(error).__name__}). Start one, "
                "`prometheus --config.file=deploy/prometheus/prometheus.yml`, or name where it is: --prometheus URL."
            ) from error
        try:
            body = answer.json()
            if body["status"] == "success":
                return body["data"]["result"]
            said = str(body["error"])
        except (ValueError, KeyError, TypeError) as error:
            raise PrometheusError(
                f"What answers at {self.url} is no Prometheus (status {answer.status_code} of /api/v1/{what}). "
                "Name its base URL: --prometheus URL."
            ) from error
        raise PrometheusError(f"Prometheus at {self.url} refuses the query {form['query']}: {said}")


def _series(result: Any, points: Any) -> tuple[Series, ...]:
    found = [Series(each["metric"], _numbers(points(each))) for each in result]
    return tuple(each for each in found if each.points)


def _numbers(points: Any) -> tuple[tuple[float, float], ...]:
    numbers = ((float(time), float(value)) for time, value in points)
    return tuple((time, value) for time, value in numbers if math.isfinite(value))
