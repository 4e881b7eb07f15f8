"""uvicorn's HTTP protocol with three changes, all for the CPU that a request costs (`python -m loadtests.overhead`).

- Writes are held until the next iteration of the loop. uvicorn writes the head of an answer and its body apart, and
  uvloop sends each write at once: a second system call and a second segment. And where many requests are answered in
  one iteration, each write in between wakes a client, which costs more than the answer did; now they leave in a row.
- An application can be called back when the client hangs up. ASGI's way, a task of its own that waits in `receive()`,
  costs a task and its cancellation for every request, while hardly any client hangs up.
- A whole answer, and a piece of a streamed one, can be written without coroutines and without checking again what a
  parser has checked; a piece even while the upstream's socket is being read.

It reaches into uvicorn's protocol, so uvicorn's version is bounded in `pyproject.toml`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Final, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

CONNECTION: Final = "preamble.connection"
"""The key in a scope under which the connection is: a `PreambleHttpProtocol`."""


class HoldingTransport(asyncio.Transport):
    """Passes everything on to `transport`, but holds what is written until the next iteration of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: list[bytes | bytearray | memoryview] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write `data` in the next iteration of the loop, together with all that is written until then."""
        if self._held is None:
            self._held = [data]
            self._loop.call_soon(self._flush)
        else:
            self._held.append(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several pieces."""
        self.write(b"".join(list_of_data))

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._transport.is_closing():  # the client may have left since
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def close(self) -> None:
        """Close when all is written."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._held = None
        self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows of `name`."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Stop reading from the client."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read from the client again."""
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the connection to another protocol."""
        self._transport.set_protocol(protocol)


class PreambleHttpProtocol(HttpToolsProtocol):
    """The protocol that `preamble serve` gives to uvicorn as its `http` option. It is in each scope as `CONNECTION`."""

    _hung_up: Callable[[], None] | None = None
    _drained: Callable[[], None] | None = None

    # The request that is being answered; `self.cycle` is the one that was received last, which may wait behind it.
    _answering: RequestResponseCycle
    _idle_since: float | None = None
    _idle_timer: asyncio.TimerHandle | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As uvicorn's, but with one timer per connection that looks now and then how long it has been idle.

        uvicorn's starts a timer after each answer and cancels it at the next request.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)

    def _unset_keepalive_if_required(self) -> None:
        super()._unset_keepalive_if_required()  # a connection that has never asked for anything has uvicorn's timer
        self._idle_since = None

    def _look_whether_idle(self) -> None:
        self._idle_timer = None
        if self.transport.is_closing() or self._idle_since is None:
            return  # busy: the next answer starts it again
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(left_s, self._look_whether_idle)

    def on_hang_up(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` when the client hangs up, until another one or None is given.

        For the request that is being answered, once its body has been read: the connection is then read only to see
        whether it ends.
        """
        self._hung_up = callback
        if callback is None:
            return
        if self.transport.is_closing():
            callback()  # it has hung up already
        else:
            self.flow.resume_reading()  # it may stand still since a large body

    def write_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Write a whole answer to the current request, which has none yet and is not HEAD.

        `headers` hold the body's length and come from a parser, so that they need no second check for line breaks.
        What `RequestResponseCycle.send` does in two calls, without a pattern match for every name and value.
        """
        cycle = self._answering
        if cycle.disconnected:
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        parts = [STATUS_LINE[status]]
        for headers_of in (cycle.default_headers, headers):
            for name, value in headers_of:
                parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def write_chunk(self, data: bytes) -> bool:
        """Write a piece of the body of an answer in chunked coding, whose head went out through ASGI's `send`.

        Returns False when the client does not keep up: write no more until `on_drain` calls back. `send` would do the
        same with a coroutine and a dozen checks for each piece; it still has to end the answer.
        """
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self.flow.write_paused

    def on_drain(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` whenever the client has caught up, until another one or None is given."""
        self._drained = callback

    def resume_writing(self) -> None:
        """Tell whoever waits to write."""
        super().resume_writing()
        if self._drained is not None:
            self._drained()

    def on_message_begin(self) -> None:
        """Begin a scope."""
        super().on_message_begin()
        cast("MutableMapping[str, Any]", self.scope)[CONNECTION] = self

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever wants to know."""
        super().connection_lost(exc)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        callback, self._hung_up = self._hung_up, None
        if callback is not None:
            callback()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wrap the transport."""
        super().connection_made(HoldingTransport(transport, self.loop))
