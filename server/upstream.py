"""The upstream client: HTTP/1.1 to vLLM over pooled keep-alive connections. The only module that speaks HTTP outward.

It exists because the request path has a budget of some tens of microseconds and general clients cost ten to a hundred
times that (`python -m loadtests.overhead` measures the sum). It parses with httptools (llhttp, the parser of Node.js),
knows requests and responses as bytes, and refuses to know anything about OpenAI, users or constitutions.

Life of one exchange:

1. `request` takes an idle connection (the one used last), or opens one, or waits its turn when all are busy.
2. It writes head and body, and returns when the answer's head is there (`stream=True`) or its body too (otherwise).
3. The body is taken chunk by chunk as it arrives; a slow taker pauses the upstream's socket.
4. A finished exchange gives its connection back. Any other end, `close` and cancellation too, closes the connection,
   which is how vLLM learns that nobody wants the rest.

Nothing is sent twice, except when the connection failed before one byte of the answer: once more on a new connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
import orjson

from server.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnavailable

Headers = list[tuple[bytes, bytes]]

# Above this much body that nobody has taken yet the connection stops reading. Large enough that a normal chat answer
# never pauses, small enough that a thousand slow readers cost no more than 256 MiB.
HIGH_WATER_BYTES: Final = 256 * 1024
# A head larger than this is no answer of a sane server, and must not grow without bound.
MAX_HEAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The four timers, in seconds. Each raises its own error code.

    connect: until a connection is there, waiting for a free one included (`upstream_connect_timeout`, 503).
    first_token: streamed answers only, from the request to the first byte of the body (`upstream_first_token_timeout`).
    stall: silence inside a body that has begun; time in which we paused reading does not count
        (`upstream_stall_timeout`).
    total: from the request to the end of the body (`upstream_total_timeout`).
    """

    connect_s: float
    first_token_s: float
    stall_s: float
    total_s: float


class ConnectionLost(UpstreamUnavailable):
    """The connection failed before one byte of the answer, so sending the request again is safe."""


class UpstreamResponse:
    """An answer of the upstream, being received. Iterate it, or `read` it; `close` it if it is not taken to its end."""

    __slots__ = (
        "_begun",
        "_buffered",
        "_chunks",
        "_complete",
        "_connection",
        "_error",
        "_first_deadline",
        "_last_activity",
        "_loop",
        "_timeouts",
        "_timer",
        "_total_deadline",
        "_waiter",
        "_whole",
        "headers",
        "received_at",
        "status",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: _Connection, timeouts: Timeouts, *, stream: bool
    ) -> None:
        self.status = 0
        self.headers: Headers = []
        self.received_at = 0.0  # time.perf_counter() at the latest byte: what is later is not the engine's time
        self._loop = loop
        self._connection: _Connection | None = connection
        self._timeouts = timeouts
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._complete = False
        self._begun = False
        self._whole = not stream
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        now = loop.time()
        self._last_activity = now
        self._total_deadline = now + timeouts.total_s
        self._first_deadline = now + timeouts.first_token_s if stream else self._total_deadline
        # A body may begin at once and stall right after, so the first look is due when a stall could be over.
        first_look = min(self._first_deadline, self._total_deadline, now + timeouts.stall_s)
        self._timer = loop.call_at(first_look, self._check_deadlines)

    def __aiter__(self) -> UpstreamResponse:
        return self

    async def __anext__(self) -> bytes:
        """Return what has arrived since the last call, waiting for at least one byte.

        Raises `UpstreamTimeout` or `UpstreamBroken` when the body cannot be had to its end.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._complete:
                raise StopAsyncIteration
            await self._wait()
        return self._take()

    async def read(self) -> bytes:
        """Return the rest of the body, whole. Raises as iterating does."""
        if self._complete and len(self._chunks) == 1:
            return self._take()
        return b"".join([chunk async for chunk in self])

    def take_all(self) -> bytes | None:
        """Return the whole body without waiting, or None when it is not all here."""
        return self._take() if self._complete and self._error is None else None

    def close(self) -> None:
        """Let go of the answer. If it has not ended, the connection closes and the upstream stops working on it."""
        self._timer.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()

    def _take(self) -> bytes:
        chunks = self._chunks
        self._chunks = []
        if self._buffered > HIGH_WATER_BYTES and self._connection is not None:
            self._last_activity = self._loop.time()  # the silence until now was ours
            self._connection.resume_reading()
        self._buffered = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def head(self) -> None:
        """Wait until the head is there, and for an answer that is not streamed its body (up to the high water)."""
        while not self._ready():
            await self._wait()
        if self._error is not None and self.status == 0:
            raise self._error

    def _ready(self) -> bool:
        if self._complete or self._error is not None:
            return True
        return self.status != 0 and (not self._whole or self._buffered > HIGH_WATER_BYTES)

    def wake(self) -> None:
        """Continue whoever waits for more."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What the connection calls.

    def on_head(self, status: int, headers: Headers) -> None:
        """Take the head."""
        self.headers = headers
        self.status = status
        for name, value in headers:
            if name == b"content-type" and value.startswith(b"text/event-stream"):
                self._whole = False  # streamed although not asked for: relay it as it comes

    def on_body(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        self._begun = True

    @property
    def over_high_water(self) -> bool:
        """True when more has arrived than should be held."""
        return self._buffered > HIGH_WATER_BYTES

    def on_activity(self) -> None:
        """Note that bytes have arrived."""
        self._last_activity = self._loop.time()
        self.received_at = perf_counter()

    def on_complete(self) -> None:
        """Take the end of the body; the connection is not ours any more."""
        self._complete = True
        self._connection = None
        self._timer.cancel()

    def fail(self, error: UpstreamError) -> None:
        """End the exchange with `error`, once the chunks that did arrive have been taken."""
        if self._complete or self._error is not None:
            return
        self._error = error
        self.close()
        self.wake()

    def _check_deadlines(self) -> None:
        """Fire the timer that is due, or sleep until the next one can be.

        Chunks only note their time; one timer per exchange looks at it, which is far cheaper than one timer per chunk.
        """
        now = self._loop.time()
        timeouts = self._timeouts
        if now >= self._total_deadline:
            self.fail(
                UpstreamTimeout(
                    f"The upstream did not finish within {timeouts.total_s:g} s. Ask for fewer tokens, or raise "
                    "total_timeout_s.",
                    code="upstream_total_timeout",
                )
            )
            return
        if not self._begun:
            if now >= self._first_deadline:
                self.fail(
                    UpstreamTimeout(
                        f"The upstream sent no token within {timeouts.first_token_s:g} s. It may be overloaded: try "
                        "again later, or raise first_token_timeout_s.",
                        code="upstream_first_token_timeout",
                    )
                )
                return
            due = self._first_deadline
        elif self._buffered > HIGH_WATER_BYTES:
            due = now + timeouts.stall_s
        else:
            due = self._last_activity + timeouts.stall_s
            if now >= due:
                self.fail(
                    UpstreamTimeout(
                        f"The upstream fell silent for {timeouts.stall_s:g} s in the middle of its answer. Try again, "
                        "or raise stall_timeout_s.",
                        code="upstream_stall_timeout",
                    )
                )
                return
        next_look = min(due, now + timeouts.stall_s, self._total_deadline)
        self._timer = self._loop.call_at(next_look, self._check_deadlines)


class _Connection(asyncio.Protocol):
    """One connection: feeds the parser, hands what it finds to the current exchange, knows whether it can be reused."""

    __slots__ = (
        "_body_until_close",
        "_exchange",
        "_head_bytes",
        "_headers",
        "_keep_alive",
        "_message_ended",
        "_on_idle",
        "_on_lost",
        "_parser",
        "_paused",
        "_poisoned",
        "_response_begun",
        "_transport",
        "closed",
        "uses",
    )

    def __init__(self, on_idle: Callable[[_Connection], None], on_lost: Callable[[_Connection], None]) -> None:
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: UpstreamResponse | None = None
        self._headers: Headers = []
        self._head_bytes = 0
        self._body_until_close = False
        self._response_begun = False
        self._message_ended = False
        self._keep_alive = False
        self._poisoned = False
        self._paused = False
        self.closed = False
        self.uses = 0

    def send(self, exchange: UpstreamResponse, head: bytes, body: bytes) -> None:
        """Begin an exchange on this idle connection."""
        assert self._transport is not None  # noqa: S101 -- connection_made ran before the pool handed us out
        self.uses += 1
        self._exchange = exchange
        self._response_begun = False
        self._message_ended = False
        # One write for the usual request; joining a large body would copy it for nothing.
        if len(body) <= HIGH_WATER_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def abandon(self) -> None:
        """Close: the exchange ends before its answer does."""
        self._exchange = None
        self.close()

    def close(self) -> None:
        """Close at once, without waiting for anything to be written."""
        self._poisoned = True
        if self._transport is not None and not self.closed:
            self._transport.abort()

    def resume_reading(self) -> None:
        """Read again after a pause."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection gives a Transport

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.close()  # bytes that nobody asked for: this connection cannot be trusted again
            return
        self._response_begun = True
        exchange.on_activity()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            exchange.fail(UpstreamBroken(f"The upstream sent something that is not HTTP/1.1 ({error})."))
            self.close()
            return
        if self._message_ended:
            self._end(exchange)
        elif exchange.over_high_water and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        exchange.wake()

    def eof_received(self) -> bool:
        return False  # the transport closes, connection_lost says what that means

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if self._body_until_close and exc is None:
                exchange.on_complete()
                exchange.wake()
            elif self._response_begun:
                exchange.fail(UpstreamBroken("The upstream closed the connection in the middle of its answer."))
            else:
                exchange.fail(
                    ConnectionLost(
                        "The upstream closed the connection before it answered. Try again.",
                        code="upstream_connection_lost",
                    )
                )
        self._on_lost(self)

    # httptools callbacks, all called inside feed_data

    def on_message_begin(self) -> None:
        """Note a new message; one too many means that request and answer are out of step."""
        if self._message_ended:
            self._poisoned = True
        self._headers = []
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # httptools turns it into HttpParserCallbackError
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Give the head to the exchange, unless it is an interim one (1xx)."""
        status = self._parser.get_status_code()
        if status < 200 or self._message_ended or self._exchange is None:  # noqa: PLR2004 -- RFC 9110, 15.2
            return
        framed = status in {204, 304} or any(
            name in {b"content-length", b"transfer-encoding"} for name, _ in self._headers
        )
        self._body_until_close = not framed
        self._exchange.on_head(status, self._headers)

    def on_body(self, body: bytes) -> None:
        """Give a piece of the body to the exchange."""
        if self._exchange is not None and not self._message_ended:
            self._exchange.on_body(body)

    def on_message_complete(self) -> None:
        """Note the end; `data_received` acts on it when the parser has returned."""
        if self._exchange is not None and self._exchange.status != 0:
            self._message_ended = True
            # llhttp knows this here only: after the callback its state is that of the next message.
            self._keep_alive = self._parser.should_keep_alive()

    def _end(self, exchange: UpstreamResponse) -> None:
        """Finish the exchange and offer the connection for reuse, if its state is beyond doubt."""
        self._exchange = None
        exchange.on_complete()
        unsent = self._transport is None or self._transport.get_write_buffer_size() > 0
        if self._poisoned or unsent or self._body_until_close or not self._keep_alive:
            self.close()
        else:
            self.resume_reading()
            self._on_idle(self)


class UpstreamClient:
    """A pool of connections to one upstream.

    base_url: scheme, host, port and an optional path prefix. api_key: sent as a bearer token with every request.
    max_connections: more exchanges than that wait their turn, first come first served, at most `timeouts.connect_s`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        max_connections: int = 1024,
        timeouts: Timeouts,
    ) -> None:
        parts = urlsplit(base_url)
        self.base_url = base_url
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").encode()
        host = f"[{self._host}]" if ":" in self._host else self._host
        common = [f"host: {host}:{self._port}\r\n".encode()]
        if api_key is not None:
            common.append(f"authorization: Bearer {api_key}\r\n".encode())
        self._common = b"".join(common)
        self._timeouts = timeouts
        self._max_connections = max_connections
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def open_connections(self) -> int:
        """Connections that exist now, idle or busy."""
        return len(self._open)

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        stream: bool = False,
    ) -> UpstreamResponse:
        """Send a request; return the answer when its head is there, or all of it where `stream` is False.

        `path` begins with a slash and may carry a query. `headers` must not name host, authorization, content-length
        or a hop-by-hop header. Any status the upstream answers with is returned, not raised.
        Raises `UpstreamUnavailable`, `UpstreamTimeout` or `UpstreamBroken`. Cancelling closes the connection.
        """
        head = self._head(method, path, headers, body)
        for attempt in (1, 2):
            connection = await self._acquire(fresh=attempt > 1)
            exchange = UpstreamResponse(asyncio.get_running_loop(), connection, self._timeouts, stream=stream)
            connection.send(exchange, head, body)
            try:
                await exchange.head()
            except ConnectionLost:
                # Typically the upstream closed an idle connection just as we wrote to it.
                if attempt == 1:
                    continue
                raise
            except BaseException:
                exchange.close()
                raise
            return exchange
        raise AssertionError("unreachable")

    async def request_json(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Send `payload` as JSON; return the status and the decoded answer (None where it is empty or not JSON)."""
        body = b"" if payload is None else orjson.dumps(payload)
        headers = ((b"content-type", b"application/json"),) if body else ()
        response = await self.request(method, path, headers=headers, body=body)
        raw = await response.read()
        try:
            return response.status, orjson.loads(raw)
        except orjson.JSONDecodeError:
            return response.status, None

    async def aclose(self) -> None:
        """Close every connection. Exchanges under way fail with `UpstreamUnavailable` or `UpstreamBroken`."""
        self._closed = True
        for connection in tuple(self._open):
            connection.close()
        while self._open:
            await asyncio.sleep(0)

    def _head(self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
        parts = [method.encode(), b" ", self._prefix, path.encode(), b" HTTP/1.1\r\n", self._common]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        if body or method != "GET":
            parts.append(b"content-length: %d\r\n" % len(body))
        parts.append(b"\r\n")
        return b"".join(parts)

    async def _acquire(self, *, fresh: bool) -> _Connection:
        """Return a connection that is idle, new, or freed by somebody else within the connect timeout."""
        if not fresh:
            idle = self._take_idle()
            if idle is not None:
                return idle
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                while len(self._open) + self._opening >= self._max_connections:
                    idle = self._take_idle()
                    if idle is not None:
                        if not fresh:
                            return idle
                        idle.close()
                    await self._turn()
                return await self._connect()
        except TimeoutError as error:
            raise UpstreamUnavailable(
                f"No connection to the upstream within {self._timeouts.connect_s:g} s. Try again later.",
                code="upstream_connect_timeout",
            ) from error

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _turn(self) -> None:
        """Wait until a connection is freed or lost."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._next_turn()  # it came just as we gave up: pass it on
            else:
                self._waiting.remove(turn)
            raise

    def _next_turn(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def _connect(self) -> _Connection:
        if self._closed:
            raise UpstreamUnavailable("The proxy is shutting down. Try again.", code="shutting_down")
        loop = asyncio.get_running_loop()
        self._opening += 1
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self._on_idle, self._on_lost), self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            self._next_turn()
            raise UpstreamUnavailable(
                f"The upstream cannot be reached ({type(error).__name__}). Try again later; the operator sees "
                "`preamble doctor` for the cause."
            ) from error
        finally:
            self._opening -= 1
        self._open.add(connection)
        return connection

    def _on_idle(self, connection: _Connection) -> None:
        if self._closed:
            connection.close()
            return
        self._idle.append(connection)
        if self._waiting:
            self._next_turn()

    def _on_lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._next_turn()
