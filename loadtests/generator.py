"""A closed-loop load generator: one process, keep-alive connections, every answer checked.

Each of the connections sends the same request again as soon as it has the answer, until `requests` have been sent or
`seconds` are over. With `rate` the requests arrive at random times instead (a Poisson process, the same for every
target), and latency includes the wait for a free connection, so that a slow target cannot hide behind its own slowness.

The CPU of the server under load is read here, at the first and at the last moment of the measured part, because only
the generator knows them. Warm-up requests come before. It talks to loopback only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httptools
import orjson

from loadtests.answers import MODEL
from loadtests.cpu import CpuTime, cpu_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONNECTIONS = 64
GRACE_S = 30.0
_DONE = b"data: [DONE]\n\n"
_OK = 200
_SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
_QUESTION = (
    "I am planning a small vegetable garden on a north-facing balcony of four square metres. Which vegetables would "
    "still do well with about three hours of sun a day, what containers do they need, and in which weeks should I sow "
    "them if the last frost usually comes in the middle of May? Please answer in a short list, one line for each."
)


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and how much of it.

    `requests` and `seconds` bound the measured part; whichever comes first ends it. `rate` in requests per second makes
    the arrivals open-loop. `warm_up` requests are sent on each connection first. `body_bytes`, when given, is the exact
    length that every answer's body must have. `pid` names the server process whose CPU is read.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    stream: bool = False
    connections: int = CONNECTIONS
    requests: int = 1000
    seconds: float = 60.0
    rate: float | None = None
    warm_up: int = 2
    body_bytes: int | None = None
    pid: int | None = None
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What came back. `latency_ms` and `first_byte_ms` map p50, p90, p99 and max to milliseconds.

    `pieces` is the mean number of HTTP chunks in an answer: for a stream of 64 SSE chunks it says whether the relay
    really saw 64 reads. `cpu_ms` is the watched process's CPU per request; `cpu_agrees` is False when the kernel's two
    accounts of it differ, which makes the figure worthless. `reconnects` counts connections that the server closed
    between two requests.
    """

    requests: int
    errors: dict[str, int]
    seconds: float
    requests_per_s: float
    latency_ms: dict[str, float]
    first_byte_ms: dict[str, float]
    pieces: float
    reconnects: int
    cpu_ms: float | None
    cpu_agrees: bool


def chat_body(*, stream: bool, fields: Mapping[str, object] | None = None) -> bytes:
    """Return the request that the benchmark sends: a question of ordinary length with ordinary parameters.

    fields: more of it, or other values.
    """
    messages = [{"role": "user", "content": _QUESTION}]
    body = {"model": MODEL, "messages": messages, "temperature": 0.7, "max_tokens": 256, **(fields or {})}
    return orjson.dumps({**body, "stream": True} if stream else body)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 (nearest rank) and max in milliseconds; empty when there is nothing to rank."""
    if not seconds:
        return {}
    ranked = sorted(seconds)
    rank = {name: ranked[max(0, math.ceil(share * len(ranked)) - 1)] for name, share in _SHARES}
    return {name: value * 1e3 for name, value in rank.items()}


def raw_request(load: Load) -> bytes:
    """Return the bytes of one request. Raises `ValueError` when the URL is not plain HTTP to a loopback address."""
    parts = urlsplit(load.url)
    if parts.scheme != "http" or not parts.hostname or not _is_loopback(parts.hostname):
        raise ValueError(f"{load.url} is not http:// to a loopback address; the load generator talks to nothing else")
    body = load.body or chat_body(stream=load.stream)
    lines = [f"POST {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}", "User-Agent: preamble-loadtest"]
    lines += ["Accept: application/json", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in load.headers]
    return "\r\n".join((*lines, "", "")).encode() + body


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(slots=True)
class _Tally:
    """What the connections have counted in the measured part."""

    done: int = 0
    pieces: int = 0
    reconnects: int = 0
    latency_s: list[float] = field(default_factory=list)
    first_byte_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


class _Connection(asyncio.Protocol):
    """One connection with at most one request on its way. Tells the generator about every end."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._transport: asyncio.WriteTransport | None = None
        self._began = 0.0  # when the request in flight was due; 0 when there is none
        self._first_byte = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection gives a full Transport
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        if self._began:
            self._generator.ended(self, "connection lost", self._began)
            self._began = 0.0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, due: float) -> None:
        self._began = due
        self._first_byte = 0.0
        self._length = self._pieces = 0
        self._tail = b""
        assert self._transport is not None  # noqa: S101  # the generator sends on open connections only
        self._transport.write(self._generator.request)

    def close(self) -> None:
        """Close the connection at once; whoever calls it counts the request in flight."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            self._end("not HTTP")

    # The parser's callbacks.

    def on_chunk_header(self) -> None:
        self._pieces += 1

    def on_body(self, part: bytes) -> None:
        if not self._first_byte:
            self._first_byte = perf_counter()
        self._length += len(part)
        self._tail = part if len(part) >= len(_DONE) else self._tail + part

    def on_message_complete(self) -> None:
        load = self._generator.load
        status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        if status != _OK:
            self._end(f"status {status}")
        elif load.stream and not self._tail.endswith(_DONE):
            self._end("stream without [DONE]")
        elif load.body_bytes is not None and self._length != load.body_bytes:
            self._end(f"body of {self._length} bytes")
        else:
            self._end(None)

    def _end(self, error: str | None) -> None:
        began, self._began = self._began, 0.0
        if not began:
            self._generator.tally.errors["answer to no request"] += 1
            return
        if error is None:
            self._generator.tally.pieces += self._pieces - (self._pieces > 0)  # the last chunk, of length 0, is framing
            self._generator.tally.first_byte_s.append(self._first_byte - began)
        self._generator.ended(self, error, began)


class _Generator:
    """Hands requests to connections and counts their ends."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.request = raw_request(load)
        self.tally = _Tally()
        self._connections = {_Connection(self) for _ in range(load.connections)}
        self._idle: list[_Connection] = []
        self._waiting: deque[float] = deque()  # arrival times of requests that found no idle connection
        self._left = 0  # requests that may still be sent
        self._open = 0  # requests that are sent or waiting, and not ended
        self._deadline = math.inf
        self._rate: float | None = None
        self._finished = asyncio.Event()
        self._reconnecting: set[asyncio.Future[None]] = set()

    async def run(self) -> Result:
        """Open the connections, warm up, measure, and return what was counted."""
        load = self.load
        try:
            for connection in self._connections:
                await self._connect(connection)
            await self._phase(load.warm_up * load.connections, None)
            if self.tally.errors:
                return self._result(0.0, None)
            self.tally = _Tally()
            before = cpu_time(load.pid) if load.pid else None
            began = perf_counter()
            await self._phase(load.requests, load.rate)
            elapsed_s = perf_counter() - began
            return self._result(elapsed_s, cpu_time(load.pid) - before if load.pid and before else None)
        finally:
            for task in self._reconnecting:
                task.cancel()
            for connection in self._connections:
                connection.close()

    def ended(self, connection: _Connection, error: str | None, began: float) -> None:
        """Count the end of one request and give the connection its next one."""
        self.tally.done += 1
        self.tally.latency_s.append(perf_counter() - began)
        if error is not None:
            self.tally.errors[error] += 1
        self._open -= 1
        self._free(connection)

    async def _phase(self, requests: int, rate: float | None) -> None:
        """Send `requests`, closed-loop or at `rate`, and return when the last has ended."""
        self._left, self._open, self._rate = requests, 0, rate
        self._deadline = perf_counter() + self.load.seconds
        self._finished.clear()
        self._idle = list(self._connections)
        if rate is None:
            while self._idle and self._take():
                self._send(self._idle.pop(), perf_counter())
        else:
            self._arrivals = random.Random(self.load.seed)
            self._next = perf_counter()
            self._arrive()
        self._settle()
        try:
            await asyncio.wait_for(self._finished.wait(), self.load.seconds + GRACE_S)
        except TimeoutError:
            self.tally.errors["no answer in time"] += self._open

    def _take(self) -> bool:
        """Claim one of the requests that may still be sent; False when all are, or time is over."""
        if perf_counter() >= self._deadline:
            self._left = 0
        if not self._left:
            return False
        self._left -= 1
        self._open += 1
        return True

    def _settle(self) -> None:
        if not self._left and not self._open:
            self._finished.set()

    def _free(self, connection: _Connection) -> None:
        """Give a connection that has nothing to do the next request, if there is one."""
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._rate is None and self._take():
            self._send(connection, perf_counter())
        else:
            self._idle.append(connection)
            self._settle()

    def _arrive(self) -> None:
        """Let every request that is due by now arrive, and set the timer for the next one."""
        assert self._rate is not None  # noqa: S101  # set by _phase, which starts the arrivals
        now = perf_counter()
        while self._next <= now and self._take():
            if self._idle:
                self._send(self._idle.pop(), now)
            else:
                self._waiting.append(now)
            self._next += self._arrivals.expovariate(self._rate)
        if self._left:
            asyncio.get_running_loop().call_later(max(0.0, self._next - perf_counter()), self._arrive)
        else:
            self._settle()

    def _send(self, connection: _Connection, due: float) -> None:
        if connection.is_open:
            connection.send(due)
            return
        self.tally.reconnects += 1
        task = asyncio.ensure_future(self._reopen(connection, due))
        self._reconnecting.add(task)
        task.add_done_callback(self._reconnecting.discard)

    async def _reopen(self, closed: _Connection, due: float) -> None:
        # A new object, because the loss of the old connection may be reported to the old one after this.
        self._connections.discard(closed)
        connection = _Connection(self)
        self._connections.add(connection)
        try:
            await self._connect(connection)
        except OSError as error:
            self.ended(connection, f"cannot connect: {error.strerror}", due)
        else:
            connection.send(due)

    async def _connect(self, connection: _Connection) -> None:
        parts = urlsplit(self.load.url)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: connection, str(parts.hostname), parts.port or 80)

    def _result(self, elapsed_s: float, used: CpuTime | None) -> Result:
        tally = self.tally
        return Result(
            requests=tally.done,
            errors=dict(tally.errors),
            seconds=elapsed_s,
            requests_per_s=tally.done / elapsed_s if elapsed_s else 0.0,
            latency_ms=percentiles(tally.latency_s),
            first_byte_ms=percentiles(tally.first_byte_s),
            pieces=tally.pieces / max(1, len(tally.first_byte_s)),
            reconnects=tally.reconnects,
            cpu_ms=used.exact_s * 1e3 / max(1, tally.done) if used else None,
            cpu_agrees=used.agrees() if used else True,
        )


async def generate(load: Load) -> Result:
    """Run one load and return what came back.

    Raises `ValueError` when the URL is not on loopback, and `OSError` when nothing listens there.
    """
    return await _Generator(load).run()
