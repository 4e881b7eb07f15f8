"""A Prometheus for the report's tests: the shape of an expression decides what series there are."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import httpx

BUCKETS = ("0.5", "0.9", "1.0", "+Inf")


@dataclass(slots=True)
class ScriptedPrometheus:
    """Two series for an expression that groups by a label, the buckets of a histogram by `le`, else one.

    values: what an expression evaluates to, by a text in it, 0.25 otherwise. nothing: texts in expressions that find no
    series. gap: (from, to), Unix times without points. asked: the forms that were sent.
    """

    values: dict[str, float | str] = field(default_factory=dict)
    nothing: tuple[str, ...] = ()
    gap: tuple[float, float] = (0.0, 0.0)
    asked: list[dict[str, str]] = field(default_factory=list)

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Return status and body of a request."""
        self.asked.append(form | {"path": path})
        expression = form["query"]
        if "$" in expression:
            return 400, {"status": "error", "errorType": "bad_data", "error": "unexpected character: '$'"}
        if any(text in expression for text in self.nothing):
            found = []
        else:
            found = [
                {"metric": labels} | self._points(path, form, float(factor), self._value(expression))
                for labels, factor in self._series(expression)
            ]
        return 200, {"status": "success", "data": {"resultType": "", "result": found}}

    def handled(self, request: httpx.Request) -> httpx.Response:
        """Answer as a transport of httpx."""
        status, body = self.answer(request.url.path, form_of(request.content.decode()))
        return httpx.Response(status, json=body)

    @property
    def transport(self) -> httpx.MockTransport:
        """A transport that reaches it."""
        return httpx.MockTransport(self.handled)

    def _value(self, expression: str) -> float | str:
        return next((value for text, value in self.values.items() if text in expression), 0.25)

    @staticmethod
    def _series(expression: str) -> list[tuple[dict[str, str], int]]:
        grouped = re.search(r"by \((\w+)\)", expression)
        if grouped is None or "histogram_quantile" in expression:
            return [({}, 1)]
        if grouped[1] == "le":
            return [({"le": bound}, number) for number, bound in enumerate(BUCKETS[:-1])] + [({"le": "+Inf"}, 2)]
        return [({grouped[1]: "one"}, 1), ({grouped[1]: "two"}, 2)]

    def _points(self, path: str, form: dict[str, str], factor: float, value: float | str) -> dict[str, Any]:
        said = value if isinstance(value, str) else repr(value * factor)
        if path.endswith("/query"):
            return {"value": [float(form["time"]), said]}
        start, end, step = (float(form[name]) for name in ("start", "end", "step"))
        times = [start + number * step for number in range(int((end - start) / step + 1e-6) + 1)]
        return {"values": [[time, said] for time in times if not self.gap[0] <= time < self.gap[1]]}


def form_of(body: str) -> dict[str, str]:
    """Return a posted form."""
    return {name: values[0] for name, values in parse_qs(body).items()}


@contextlib.contextmanager
def listening(prometheus: ScriptedPrometheus) -> Iterator[str]:
    """Serve it over HTTP in a thread and give its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = form_of(self.rfile.read(int(self.headers["content-length"])).decode())
            status, answer = prometheus.answer(self.path, form)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
