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

Nothing is sent twice, with one exception: an upstream may close an idle connection just as the next request is written
to it. A request that meets this, and had not one byte of an answer, is sent once more on a new connection (RFC 9112,
9.3.1; Go's net/http does the same). A new connection that is lost is not the idle race: the upstream may have worked
on the request for minutes, so its sender is told instead.

Request and answer must not get out of step. Whatever arrives beyond the end of an answer closes the connection: in the
same segment, while the connection is idle, or still unread when it is about to be used. (What such a server sends later
yet cannot be told from an answer; HTTP/1.1 has no means for it.)
"""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
import orjson

from server.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnavailable

Headers = list[tuple[bytes, bytes]]

# Above this much body that nobody has taken yet the connection stops reading. Large enough that a normal chat answer
# never pauses, small enough that a thousand slow readers cost no more than 256 MiB.
HIGH_WATER_BYTES: Final = 256 * 1024
# More than this without a byte of body is no answer of a sane server: an endless head, endless interim answers, endless
# trailers. Checked after each read of the socket, which may bring up to 256 KiB.
MAX_BYTES_WITHOUT_BODY: Final = 64 * 1024

_FIRST_STATUS: Final = 100
_FIRST_FINAL_STATUS: Final = 200  # those below are interim answers (RFC 9110, 15.2)
_FRAMING_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})


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
    """The connection failed before one byte of the answer."""

    def __init__(self) -> None:
        super().__init__(
            "The upstream closed the connection before it answered. Try again.", code="upstream_connection_lost"
        )


class UpstreamResponse:
    """An answer of the upstream, being received. Iterate it, or `read` it; `close` it if it is not taken to its end.

    status: 200 to 999. headers: in the order received, names in lower case, without those of interim answers and
    trailers. received_at: `time.perf_counter()` at the latest byte; what is later is not the engine's time.
    buffered_bytes: what has arrived and has not been taken.
    """

    __slots__ = (
        "_begun",
        "_chunks",
        "_complete",
        "_connection",
        "_deadlines",
        "_error",
        "_first_deadline",
        "_loop",
        "_paused",
        "_resumed_at",
        "_sink",
        "_timeouts",
        "_total_deadline",
        "_waiter",
        "_whole",
        "buffered_bytes",
        "headers",
        "received_at",
        "status",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: _Connection,
        deadlines: _Deadlines,
        *,
        started: float,
        stream: bool,
    ) -> None:
        timeouts = deadlines.timeouts
        self.status = 0
        self.headers: Headers = []
        self.received_at = 0.0
        self.buffered_bytes = 0
        self._loop = loop
        self._connection: _Connection | None = connection  # None when the exchange has ended, well or not
        self._timeouts = timeouts
        self._chunks: list[bytes] = []
        self._begun = False
        self._complete = False
        self._error: UpstreamError | None = None
        self._whole = not stream
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._resumed_at = 0.0
        self._sink: Callable[[bytes], None] | None = None
        self._total_deadline = started + timeouts.total_s
        self._first_deadline = started + timeouts.first_token_s if stream else self._total_deadline
        self._deadlines = deadlines
        deadlines.add(self)

    def __aiter__(self) -> UpstreamResponse:
        return self

    async def __anext__(self) -> bytes:
        """Return what has arrived since the last call, waiting for at least one byte.

        Raises `UpstreamTimeout`, `UpstreamBroken` or `UpstreamUnavailable` (we are shutting down) when the body cannot
        be had to its end; what did arrive is returned first. Cancelling closes the answer.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._complete:
                raise StopAsyncIteration
            # As in `_wait`, but without a coroutine of its own: this runs once per chunk of every stream.
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.close()
                raise
            finally:
                self._waiter = None
        return self._take()

    async def pump(self, sink: Callable[[bytes], None]) -> None:
        """Give the rest of the body to `sink`, piece by piece as it arrives, and return at its end.

        `sink` is called while the socket is being read, and spares a future and a task switch per piece, which is a
        fifth of what relaying one costs. It must not block; when it has enough it calls `pause`. Raises as iterating
        does, after what did arrive has been given.
        """
        if self._chunks:
            sink(self._take())
        self._sink = sink
        try:
            while self._connection is not None:
                await self._wait()
        finally:
            self._sink = None
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        """Stop reading from the upstream until `resume`; no stall is found meanwhile."""
        if self._connection is not None:
            self._paused = True
            self._connection.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and self._connection is not None:
            self._paused = False
            self._resumed_at = time.perf_counter()  # the silence until now was ours
            self._connection.resume_reading()

    async def read(self) -> bytes:
        """Return the rest of the body, whole. Raises as iterating does."""
        if self._complete:
            return self._take()
        return b"".join([chunk async for chunk in self])

    def take_all(self) -> bytes | None:
        """Return the rest of the body without waiting, or None when it is not all here."""
        return self._take() if self._complete else None

    def close(self) -> None:
        """Let go of the answer. If it has not ended, the connection closes and the upstream stops working on it."""
        self.fail(UpstreamBroken("The answer was closed before its end. Take it to its end to have all of it."))

    async def head(self) -> None:
        """Wait until the head is there, and for an answer that is not streamed its body (up to the high water).

        Raises as iterating does, also when a body that was to be whole breaks off: none of it has been handed out.
        """
        while not self._ready():
            await self._wait()
        if self._error is not None and (self._whole or not self.status):
            raise self._error
        self._whole = False

    def _take(self) -> bytes:
        chunks = self._chunks
        self._chunks = []
        if self.buffered_bytes > HIGH_WATER_BYTES and self._connection is not None:
            self._resumed_at = time.perf_counter()  # the silence until now was ours
            self._connection.resume_reading()
        self.buffered_bytes = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _ready(self) -> bool:
        """Tell whether there is anything to be done by whoever waits."""
        if self._connection is None:
            return True
        return self.status != 0 and (not self._whole or self.buffered_bytes > HIGH_WATER_BYTES)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    # What the connection calls.

    def wake(self) -> None:
        """Continue whoever waits, if there is anything for them."""
        sink = self._sink
        if sink is not None:
            if self._chunks:
                sink(self._take())
            if self._connection is not None:
                return
        waiter = self._waiter
        if waiter is not None and self._ready() and not waiter.done():
            waiter.set_result(None)

    def on_head(self, status: int, headers: Headers) -> None:
        """Take the head."""
        self.status = status
        self.headers = headers
        if self._whole and any(
            name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
        ):
            self._whole = False  # streamed although not asked for: relay it as it comes

    def on_body(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        self._chunks.append(chunk)
        self.buffered_bytes += len(chunk)
        self._begun = True

    def on_complete(self) -> None:
        """Take the end of the body; the connection is not ours any more."""
        self._complete = True
        self._connection = None
        self._deadlines.remove(self)

    def fail(self, error: UpstreamError) -> None:
        """End the exchange with `error`, unless it has ended already, and close the connection."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._error = error
            self._deadlines.remove(self)
            connection.abandon()
            self.wake()

    def check_deadlines(self, now: float) -> None:
        """End the exchange if one of its timers is over at loop time `now`."""
        stall_s = self._timeouts.stall_s
        if not self._begun:
            due = self._first_deadline
        elif self._paused or self.buffered_bytes > HIGH_WATER_BYTES:
            due = self._total_deadline  # we are the ones who paused
        else:
            due = now + stall_s - (time.perf_counter() - max(self.received_at, self._resumed_at))
        if now >= self._total_deadline:
            self.fail(_total_timeout(self._timeouts))
        elif now >= due:
            self.fail(_stall_timeout(self._timeouts) if self._begun else _first_token_timeout(self._timeouts))


class _Deadlines:
    """The exchanges under way, looked through at an interval for those that are over time.

    One timer for all of them: starting and cancelling one per exchange costs as much as parsing its answer's head.
    A timer of `t` seconds fires after `t` to 1.25 `t`, and at most a quarter of a second late.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        shortest_s = min(timeouts.first_token_s, timeouts.stall_s, timeouts.total_s)
        self._interval_s = min(shortest_s / 4, 0.25)
        self._exchanges: set[UpstreamResponse] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, exchange: UpstreamResponse) -> None:
        """Watch an exchange."""
        self._exchanges.add(exchange)
        if self._timer is None:
            self._start()

    def remove(self, exchange: UpstreamResponse) -> None:
        """Watch it no more."""
        self._exchanges.discard(exchange)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for exchange in tuple(self._exchanges):
            exchange.check_deadlines(now)
        if self._exchanges:
            self._start()


class _Connection(asyncio.Protocol):
    """One connection: feeds the parser, hands what it finds to the current exchange, knows whether it can be reused.

    closed: it is gone, or on its way. uses: exchanges begun on it.
    """

    __slots__ = (
        "_answer_begun",
        "_answer_ended",
        "_bytes_without_body",
        "_ends_at_eof",
        "_eof",
        "_exchange",
        "_headers",
        "_loop",
        "_parser",
        "_paused",
        "_pool",
        "_readable",
        "_reusable",
        "_transport",
        "closed",
        "uses",
    )

    _transport: asyncio.Transport
    _readable: select.poll

    def __init__(self, pool: _Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: UpstreamResponse | None = None
        self._headers: Headers = []
        self._bytes_without_body = 0
        self._answer_begun = False
        self._answer_ended = False
        self._reusable = True
        self._ends_at_eof = False
        self._eof = False
        self._paused = False
        self.closed = False
        self.uses = 0

    def send(self, exchange: UpstreamResponse, head: bytes, body: bytes) -> None:
        """Begin an exchange on this idle connection."""
        self.uses += 1
        self._exchange = exchange
        self._bytes_without_body = 0
        self._answer_begun = False
        self._answer_ended = False
        if self.closed:  # between our being connected and this first use
            exchange.fail(ConnectionLost())
        else:
            self._loop.call_soon(self._write, head, body)

    def _write(self, head: bytes, body: bytes) -> None:
        """Write in the next iteration of the loop, so that all requests of this one leave in a row.

        A write wakes the upstream. Where each one does, with some work of ours in between, both processes spend more
        on waking and cold caches than on the requests: 0.15 against 0.09 ms of our CPU per request.
        """
        if self.closed:
            return
        if len(body) <= HIGH_WATER_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))  # joining would copy a large body for nothing

    def abandon(self) -> None:
        """End the exchange before its answer does."""
        if self._exchange is not None:
            self._exchange = None
            self.close()
            self._pool.on_free(self)

    def close(self) -> None:
        """Close at once, without waiting for anything to be written."""
        if not self.closed:
            self.closed = True
            self._transport.abort()

    def shut_down(self) -> None:
        """Close, and tell the exchange under way why."""
        exchange = self._exchange
        self.close()
        if exchange is not None:
            exchange.fail(_shutting_down())

    def silent(self) -> bool:
        """Tell whether nothing has arrived since the last answer: no end of the stream, and no byte too many."""
        return not self._readable.poll(0)

    def pause_reading(self) -> None:
        """Stop reading."""
        if not self._paused and not self.closed:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again after a pause."""
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the pool."""
        self._transport = transport  # type: ignore[assignment]  # create_connection gives a Transport
        self._readable = select.poll()
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._pool.on_open(self)

    def data_received(self, data: bytes) -> None:
        """Parse, then act on what the parser found."""
        exchange = self._exchange
        if exchange is None:
            self.close()  # bytes that nobody asked for: this connection cannot be trusted again
            return
        self._answer_begun = True
        self._bytes_without_body += len(data)
        exchange.received_at = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reusable = False
            if not self._answer_ended:
                exchange.fail(_broken(f"sent something that is not HTTP/1.1 ({error})"))
                return
        if self._answer_ended:
            self._end(exchange)
        elif self._bytes_without_body > MAX_BYTES_WITHOUT_BODY:
            exchange.fail(_broken(f"sent more than {MAX_BYTES_WITHOUT_BODY} bytes without a body"))
        elif exchange.buffered_bytes > HIGH_WATER_BYTES:
            self.pause_reading()
        exchange.wake()

    def eof_received(self) -> bool:
        """Close at once: nothing can follow, and what we have not written yet would only be waited for."""
        self._eof = True
        self.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """Leave the pool; end the exchange, well if its body was to end so."""
        self.closed = True
        self._pool.on_lost(self)
        exchange = self._exchange
        if exchange is None:
            return
        if self._ends_at_eof and self._eof:
            self._end(exchange)
            exchange.wake()
        elif self._answer_begun:
            exchange.fail(_broken("closed the connection in the middle of its answer"))
        else:
            exchange.fail(ConnectionLost())

    # httptools callbacks, all called inside feed_data, so while there is an exchange

    def on_message_begin(self) -> None:
        """Expect a head; a second answer means that request and answer are out of step, and stops the parser."""
        if self._answer_ended:
            raise ValueError("there is more than one answer")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header, or a trailer."""
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Give the head to the exchange, unless it is an interim one (1xx)."""
        status: int = self._parser.get_status_code()
        if status < _FIRST_FINAL_STATUS:
            if status < _FIRST_STATUS or self._has_framing():
                raise ValueError("an interim answer has a body")  # there can be none, but llhttp would read one
            return
        # Asked here because the parser forgets how the message was framed as soon as it ends.
        self._reusable = self._parser.should_keep_alive()
        if not self._reusable:
            self._ends_at_eof = not self._has_framing()
        headers = self._headers
        self._headers = []  # trailers come after the body, and must not pass for headers (RFC 9110, 6.5.1)
        if self._exchange is not None:
            self._exchange.on_head(status, headers)

    def on_body(self, body: bytes) -> None:
        """Give a piece of the body to the exchange."""
        self._bytes_without_body = 0
        if self._exchange is not None:
            self._exchange.on_body(body)

    def on_message_complete(self) -> None:
        """Note the end, unless of an interim answer; `data_received` acts on it when the parser has returned."""
        self._answer_ended = self._parser.get_status_code() >= _FIRST_FINAL_STATUS

    def _has_framing(self) -> bool:
        return any(name in _FRAMING_HEADERS for name, _ in self._headers)

    def _end(self, exchange: UpstreamResponse) -> None:
        """Finish the exchange and offer the connection for reuse, if its state is beyond doubt."""
        self._exchange = None
        exchange.on_complete()
        if not self._reusable or self._transport.get_write_buffer_size():
            self.close()
        else:
            self.resume_reading()  # a pause must not outlive its exchange
        self._pool.on_free(self)


class _Pool:
    """The connections to one address, and the permits without which no exchange may begin.

    Every exchange holds a permit from before it looks for a connection until it ends. Permits are handed on in the
    order in which they were asked for. Idle connections hold none. A connection is opened only when none is idle, or in
    place of an idle one, so there are never more than `max_connections` of both kinds together (a few more for as long
    as closing takes).
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, max_connections: int) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._free = max_connections
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: dict[_Connection, None] = {}  # the one used last comes last
        self._nothing_open = asyncio.Event()
        self._closed = False
        self.open: set[_Connection] = set()

    def take_idle(self) -> _Connection | None:
        """Return an idle connection with a permit for it, or None when there is not both."""
        if self._free:
            connection = self._pop_idle()
            if connection is not None:
                self._free -= 1
                return connection
        return None

    async def acquire(self, timeout_s: float, *, fresh: bool = False) -> _Connection:
        """Return a connection with a permit for it, waiting at most `timeout_s` for both. `fresh`: a new one.

        Raises `UpstreamUnavailable`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._permit()
                try:
                    return (None if fresh else self._pop_idle()) or await self._connect()
                except BaseException:
                    self._release()
                    raise
        except TimeoutError as error:
            raise UpstreamUnavailable(
                f"No connection to the upstream within {timeout_s:g} s. Try again later.",
                code="upstream_connect_timeout",
            ) from error

    async def aclose(self) -> None:
        """Close every connection and wait until all are gone."""
        self._closed = True
        for connection in tuple(self.open):
            connection.shut_down()
        if self.open:
            self._nothing_open.clear()
            await self._nothing_open.wait()

    # What connections call.

    def on_open(self, connection: _Connection) -> None:
        """Count a connection that is there now."""
        self.open.add(connection)
        if self._closed:
            connection.close()

    def on_free(self, connection: _Connection) -> None:
        """Take back the permit of an exchange that has ended, and the connection if it can be used again."""
        if not connection.closed:
            self._idle[connection] = None
        self._release()

    def on_lost(self, connection: _Connection) -> None:
        """Forget a connection that is gone."""
        self._idle.pop(connection, None)
        self.open.discard(connection)
        if not self.open:
            self._nothing_open.set()

    def _pop_idle(self) -> _Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.closed and connection.silent():
                return connection
            connection.close()
        return None

    async def _permit(self) -> None:
        """Take a permit, or wait for one in line."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()  # the permit came just as we gave up
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        """Hand a permit to whoever has waited longest. So a free permit means that nobody waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def _connect(self) -> _Connection:
        if self._closed:
            raise _shutting_down()
        if self._idle:  # only where a retry opens one although others are idle: the oldest makes room
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.close()
        loop = asyncio.get_running_loop()
        connection = _Connection(self, loop)
        try:
            await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._tls)
        except asyncio.CancelledError:
            # Where this meets the success of connecting, uvloop never calls `connection_lost`.
            self.on_lost(connection)
            raise
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that can be none
            raise UpstreamUnavailable(
                f"The upstream cannot be reached ({type(error).__name__}). Try again later; the operator sees "
                "`preamble doctor` for the cause."
            ) from error
        return connection


class UpstreamClient:
    """A pool of connections to one upstream.

    base_url: scheme, host, port and an optional path prefix; https trusts the system's certificates, or SSL_CERT_FILE.
    api_key: sent as a bearer token with every request. max_connections: more exchanges than that wait their turn, first
    come first served, at most `timeouts.connect_s`.
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
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/").encode()
        common = [f"host: [{host}]:{port}\r\n" if ":" in host else f"host: {host}:{port}\r\n"]
        if api_key is not None:
            common.append(f"authorization: Bearer {api_key}\r\n")
        self._common = "".join(common).encode()
        self._common_lines = len(common)
        self._timeouts = timeouts
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._pool = _Pool(host, port, tls, max_connections)
        self._deadlines = _Deadlines(timeouts)

    @property
    def open_connections(self) -> int:
        """Connections that exist now, idle or busy."""
        return len(self._pool.open)

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

        An answer that is not streamed but longer than 256 KiB, or an event stream after all, is returned as soon as
        that is known: iterate it. Any status the upstream answers with is returned, not raised.
        `method` is not HEAD or CONNECT, whose answers are framed differently. `path` begins with a slash and may carry
        a query. `headers` do not name host, authorization, content-length or a hop-by-hop header.
        Raises `UpstreamUnavailable`, `UpstreamTimeout` or `UpstreamBroken`, and `ValueError` for a line break in
        `path` or `headers`. Cancelling closes the connection.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        head = self._head(method, path, headers, body)
        pool = self._pool
        connection = pool.take_idle() or await pool.acquire(self._timeouts.connect_s)
        while True:
            response = UpstreamResponse(loop, connection, self._deadlines, started=started, stream=stream)
            try:
                connection.send(response, head, body)
                await response.head()
            except ConnectionLost:
                if connection.uses == 1:
                    raise
                # The upstream closed an idle connection just as we wrote to it. A new one cannot meet the same.
                connection = await pool.acquire(self._timeouts.connect_s, fresh=True)
            else:
                return response

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
        """Close every connection. Exchanges under way, waiting and new ones fail with `UpstreamUnavailable`."""
        await self._pool.aclose()
        self._deadlines.close()

    def _head(self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
        parts = [method.encode(), b" ", self._prefix, path.encode(), b" HTTP/1.1\r\n", self._common]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        lines = self._common_lines + len(headers) + 2  # the request line and the empty one
        if body or method != "GET":
            parts.append(b"content-length: %d\r\n" % len(body))
            lines += 1
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise ValueError("a line break in the path or in a header would make another request of this one")
        return head


def _broken(what: str) -> UpstreamBroken:
    return UpstreamBroken(
        f"The upstream {what}. Try again; if it stays so, check that the upstream URL names a vLLM server."
    )


def _shutting_down() -> UpstreamUnavailable:
    return UpstreamUnavailable("The proxy is shutting down. Try again.", code="shutting_down")


def _first_token_timeout(timeouts: Timeouts) -> UpstreamTimeout:
    return UpstreamTimeout(
        f"The upstream sent no token within {timeouts.first_token_s:g} s. It may be overloaded: try again later, or "
        "raise first_token_timeout_s.",
        code="upstream_first_token_timeout",
    )


def _stall_timeout(timeouts: Timeouts) -> UpstreamTimeout:
    return UpstreamTimeout(
        f"The upstream fell silent for {timeouts.stall_s:g} s in the middle of its answer. Try again, or raise "
        "stall_timeout_s.",
        code="upstream_stall_timeout",
    )


def _total_timeout(timeouts: Timeouts) -> UpstreamTimeout:
    return UpstreamTimeout(
        f"The upstream did not finish within {timeouts.total_s:g} s. Ask for fewer tokens, or raise total_timeout_s.",
        code="upstream_total_timeout",
    )
