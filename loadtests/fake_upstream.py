"""A fake vLLM that costs almost nothing itself, so that a benchmark measures the relay in front of it.

It speaks HTTP/1.1 on a bare asyncio protocol and knows the few routes that a proxy asks for. Every answer is built once
at first use. It refuses to know anything about language: a chat is always answered with the same words, cut where the
request's limit ends it, and a batch of prompts is scored by the places in the batch.

A streamed answer is 64 SSE chunks in the shape of vLLM's own, each in a write of its own and `gap_s` after the one
before, so that a relay sees 64 separate reads; `data: [DONE]` leaves together with the last one, as it does from vLLM.

    python -m loadtests.fake_upstream --port 9000          # its own process, on uvloop
    async with FakeUpstream(record=True) as upstream: ...   # inside a test
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from loadtests import answers
from loadtests.answers import CHUNKS, MIN_CHUNKS, MODEL, SSE, Prepared, Streamed

if TYPE_CHECKING:
    from collections.abc import Callable

GAP_S = 0.010  # far longer than a relay needs for 64 chunks, so that chunks of one stream do not meet in a buffer
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Timing:
    """How slowly chats are answered. `first_byte_delay_s` before the answer begins, `gap_s` between streamed chunks."""

    first_byte_delay_s: float = 0.0
    gap_s: float = GAP_S


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived. `path` is the raw request target; header names are lowercase."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of the header `name` (lowercase), or None."""
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        """Return the parsed body. Raises `orjson.JSONDecodeError` when it is not JSON."""
        return orjson.loads(self.body)


class FakeUpstream:
    """The server, and what it saw. An asynchronous context manager; also `start` and `aclose`.

    `timing` may be replaced at any time and holds for the requests that arrive after that. `received` fills only with
    `record=True`. `open_requests` counts requests that are not answered in full yet, `abandoned` those whose client
    went away before that, `connections` the sockets that are open. `last_chat` is the body of the latest chat request.
    `chats`, `scorings` and `scored` count chat requests, requests for scores, and prompts scored; `most_streams` is the
    most streamed answers at a time.
    """

    def __init__(self, *, timing: Timing | None = None, chunks: int = CHUNKS, record: bool = False) -> None:
        self.timing = timing or Timing()
        self.record = record
        self.received: list[Received] = []
        self.open_requests = 0
        self.abandoned = 0
        self.chats = self.scorings = self.scored = 0
        self.streams = self.most_streams = 0
        self.last_chat = b""
        self.transports: set[asyncio.Transport] = set()
        self.chunks = chunks
        self.prepared = Prepared()
        self.completion = answers.answer(200, answers.completion_body(chunks))
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on. Raises `RuntimeError` before `start`."""
        if self._server is None:
            raise RuntimeError("the fake upstream is not started; use `async with` or `await start()` first")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many client connections are open now."""
        return len(self.transports)

    def counts(self) -> bytes:
        """Return what was counted, for whoever measures from another process."""
        names = ("chats", "scorings", "scored", "abandoned", "most_streams")
        return answers.answer(200, orjson.dumps({name: getattr(self, name) for name in names}))

    async def start(self, port: int = 0) -> None:
        """Listen on loopback; port 0 picks a free one. Raises `OSError` when the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, loop), "127.0.0.1", port, backlog=2048)

    async def aclose(self) -> None:
        """Stop listening and drop every open connection."""
        if self._server is not None:
            self._server.close()
            for transport in tuple(self.transports):
                transport.abort()
            await self._server.wait_closed()

    async def until(self, condition: Callable[[Self], bool], timeout_s: float = 5.0) -> None:
        """Return once `condition(self)` holds, looked at every 5 ms. Raises `TimeoutError` after `timeout_s`."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):  # noqa: ASYNC110  # the condition is any expression over plain counters
                await asyncio.sleep(_POLL_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()


@dataclass(slots=True)
class _Request:
    """One parsed request that waits for its turn on the connection."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    http_1_0: bool
    keep_alive: bool


class _Connection(asyncio.Protocol):
    """One client connection: parses requests, answers them in order, one at a time."""

    def __init__(self, upstream: FakeUpstream, loop: asyncio.AbstractEventLoop) -> None:
        self._upstream = upstream
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[_Request] = deque()
        self._current: _Request | None = None
        self._timer: asyncio.Handle | None = None
        self._parts: tuple[bytes, ...] = ()  # the writes of the streamed answer
        self._position = 0  # index of the next of them
        self._paused = False
        self._due = 0.0
        self._gap_s = 0.0
        self._transport: asyncio.Transport

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_server gives a full Transport
        self._upstream.transports.add(self._transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        unanswered = len(self._queue) + (self._current is not None)
        self._upstream.transports.discard(self._transport)
        self._upstream.open_requests -= unanswered
        self._upstream.abandoned += unanswered
        self._queue.clear()
        self._current = None
        self._end_stream()
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.write(answers.error(400, "BadRequestError", "This is not an HTTP/1.1 request."))
            self._transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._current is not None and self._timer is None:
            self._stream()

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = b""

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if (b"expect", b"100-continue") in self._headers:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._body = self._body + part if self._body else part

    def on_message_complete(self) -> None:
        parser = self._parser
        request = _Request(
            method=parser.get_method(),
            target=self._target,
            headers=self._headers,
            body=self._body,
            http_1_0=parser.get_http_version() == "1.0",
            keep_alive=parser.should_keep_alive(),
        )
        self._upstream.open_requests += 1
        if self._upstream.record:
            self._upstream.received.append(
                Received(request.method.decode(), request.target.decode(), tuple(request.headers), request.body)
            )
        if self._current is None:
            self._begin(request)
        else:
            self._queue.append(request)

    # Answering.

    def _begin(self, request: _Request) -> None:
        self._current = request
        timing = self._upstream.timing
        if not request.target.startswith(b"/v1/chat/completions"):
            self._send(self._route(request))
            return
        answer = self._chat(request)
        if answer is None:
            self._position = 0
            self._gap_s = timing.gap_s
            self._due = self._loop.time() + timing.first_byte_delay_s
            if timing.first_byte_delay_s > 0:
                self._timer = self._loop.call_at(self._due, self._stream)
            else:
                self._stream()
        elif timing.first_byte_delay_s > 0:
            self._timer = self._loop.call_later(timing.first_byte_delay_s, self._send, answer)
        else:
            self._send(answer)

    def _chat(self, request: _Request) -> bytes | None:
        """Return the whole answer, or None when it is to be streamed, and then set the parts to stream."""
        if request.method != b"POST":
            return answers.answer(405, b'{"detail":"Method Not Allowed"}')
        upstream = self._upstream
        upstream.chats += 1
        upstream.last_chat = request.body
        try:
            body = orjson.loads(request.body)
            model, streamed = body.get("model", MODEL), body.get("stream") is True
            kind = Streamed.by(body, upstream.chunks)
        except (orjson.JSONDecodeError, AttributeError, TypeError):
            return answers.error(400, "BadRequestError", "The body is not a JSON object of a chat.")
        if model != MODEL:
            return answers.error(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        if not streamed:
            return upstream.completion
        self._parts = upstream.prepared.stream(kind, framed=not request.http_1_0)
        upstream.streams += 1
        upstream.most_streams = max(upstream.most_streams, upstream.streams)
        return None

    def _end_stream(self) -> None:
        if self._parts:
            self._parts = ()
            self._upstream.streams -= 1

    def _score(self, body: bytes) -> bytes:
        """Return the answer to a request for scores: one prompt, text or token ids, or a batch of token-id prompts."""
        try:
            request = orjson.loads(body)
            prompt, label_ids = request["prompt"], tuple(request["logprob_token_ids"])
            prompts = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], list) else 1
            answer = self._upstream.prepared.scores(prompts, label_ids)
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
            return answers.error(400, "BadRequestError", "Give `prompt` and `logprob_token_ids`; no text is made here.")
        self._upstream.scorings += 1
        self._upstream.scored += prompts
        return answer

    def _stream(self) -> None:
        """Write the next part of a streamed answer and set the timer for the one after it."""
        self._timer = None
        request = self._current
        if request is None or self._paused:
            return  # resume_writing continues
        parts, position = self._parts, self._position
        part = parts[position]
        if position == 0:
            framing = b"connection: close" if request.http_1_0 else b"transfer-encoding: chunked"
            head = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: %b\r\n%b\r\n\r\n" % (SSE, framing)
            part = head + part
        self._position = position + 1
        if self._position < len(parts):
            self._transport.write(part)
            self._due += self._gap_s
            self._timer = self._loop.call_at(self._due, self._stream)
        else:
            self._send(part if request.http_1_0 else part + b"0\r\n\r\n", close=request.http_1_0)

    def _send(self, data: bytes, *, close: bool = False) -> None:
        """Write the end of the current answer, then turn to the next request."""
        self._timer = None
        request, self._current = self._current, None
        if request is None:
            return
        self._end_stream()
        self._upstream.open_requests -= 1
        self._transport.write(data)
        if close or not request.keep_alive:
            self._transport.close()
        elif self._queue:
            self._begin(self._queue.popleft())

    def _route(self, request: _Request) -> bytes:
        path = urlsplit(request.target).path
        if path == b"/health":
            return answers.answer(200, b"", b"text/plain")
        if path == b"/version":
            return answers.answer(200, b'{"version":"0.32.0"}')
        if path == b"/metrics":
            return answers.metrics(self._upstream.open_requests)
        if path == b"/v1/models":
            return answers.models()
        if path == b"/last_chat":
            return answers.answer(200, self._upstream.last_chat)
        if path == b"/counts":
            return self._upstream.counts()
        if path == b"/v1/completions":
            return self._score(request.body)
        if path == b"/tokenize":
            return answers.tokenized(request.body)
        return answers.answer(404, b'{"detail":"Not Found"}')


async def serve(upstream: FakeUpstream, port: int) -> None:
    """Serve until SIGINT or SIGTERM, after one line on standard output with the base URL."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await upstream.start(port)
    print(f"fake upstream on {upstream.url}", flush=True)
    await stop.wait()
    await upstream.aclose()


def main() -> None:
    """Run the fake upstream as a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.fake_upstream", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0, the default, picks a free one")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help=f"SSE chunks of a streamed answer ({CHUNKS})")
    parser.add_argument("--gap-ms", type=float, default=GAP_S * 1e3, help=f"between chunks ({GAP_S * 1e3:g})")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before the first byte of a chat's answer (0)")
    options = parser.parse_args()
    if options.chunks < MIN_CHUNKS:
        parser.error(f"--chunks must be at least {MIN_CHUNKS}: the first carries the role, the last the finish reason")
    timing = Timing(first_byte_delay_s=options.delay_ms / 1e3, gap_s=options.gap_ms / 1e3)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(FakeUpstream(timing=timing, chunks=options.chunks), options.port))


if __name__ == "__main__":
    main()
