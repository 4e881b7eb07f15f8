"""What is written in one iteration of the loop leaves in one write; and the application learns of a hang-up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterable

import uvicorn
from starlette.types import Receive, Scope, Send

from server.http_protocol import CONNECTION, HoldingTransport, PreambleHttpProtocol

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Recorder(asyncio.Transport):
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")


async def holding() -> tuple[Recorder, HoldingTransport]:
    recorder = Recorder()
    return recorder, HoldingTransport(recorder, asyncio.get_running_loop())


async def test_what_is_written_in_one_iteration_of_the_loop_leaves_in_one_write() -> None:
    recorder, transport = await holding()
    transport.write(HEAD)
    transport.write(b"hi")
    transport.writelines([b"a", b"b"])
    assert recorder.done == []
    await asyncio.sleep(0)
    assert recorder.done == [HEAD + b"hiab"]


async def test_what_is_written_later_leaves_later() -> None:
    recorder, transport = await holding()
    transport.write(HEAD)
    await asyncio.sleep(0)
    transport.write(b"hi")
    await asyncio.sleep(0)
    assert recorder.done == [HEAD, b"hi"]


async def test_closing_writes_what_is_held_and_aborting_drops_it() -> None:
    recorder, transport = await holding()
    transport.write(HEAD)
    transport.close()
    assert recorder.done == [HEAD, "close"]
    recorder, transport = await holding()
    transport.write(HEAD)
    transport.abort()
    await asyncio.sleep(0)
    assert recorder.done == ["abort"]


async def test_what_is_held_is_dropped_when_the_client_has_left_meanwhile() -> None:
    recorder, transport = await holding()
    transport.write(HEAD)
    recorder.closing = True
    await asyncio.sleep(0)
    assert recorder.done == []


HEADERS = [(b"content-length", b"2"), (b"x-a", b"b")]
BIG = bytes(300_000)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `/whole` and `/chunks` past ASGI's `send`, anything else through it."""
    await receive()
    connection: PreambleHttpProtocol = scope[CONNECTION]
    if scope["path"] == "/whole":
        connection.write_answer(200, HEADERS, b"hi")
    elif scope["path"] == "/chunks":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        drained = asyncio.Event()
        connection.on_drain(drained.set)
        for _ in range(40):
            if not connection.write_chunk(BIG):
                scope["state"]["pauses"].append(1)
                await drained.wait()
                drained.clear()
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"hi"})


@contextlib.asynccontextmanager
async def serving(pauses: list[int], keep_alive_s: int = 5) -> AsyncIterator[int]:
    """Serve the application; give its port."""

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"pauses": pauses}
        await application(scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            with_state,
            loop="none",
            http=PreambleHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=keep_alive_s,
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def exchange(port: int, request: bytes) -> bytes:
    """Send `request` and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received


async def test_a_whole_answer_is_what_uvicorn_would_have_sent_on_a_connection_that_stays_and_one_that_ends() -> None:
    async with serving([]) as port:
        for closing in (b"", b"connection: close\r\n"):
            last = b"GET /asgi HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" if not closing else b""
            whole = await exchange(port, b"GET /whole HTTP/1.1\r\nhost: x\r\n" + closing + b"\r\n" + last)
            plain = await exchange(port, b"GET /asgi HTTP/1.1\r\nhost: x\r\n" + closing + b"\r\n" + last)
            assert without_date(whole) == without_date(plain)
            assert whole.count(b"\r\n\r\nhi") == (1 if closing else 2)


def without_date(answer: bytes) -> list[bytes]:
    return [line for line in answer.split(b"\r\n") if not line.startswith(b"date:")]


async def test_a_client_that_reads_slowly_pauses_the_writer_and_gets_every_byte() -> None:
    pauses: list[int] = []
    async with serving(pauses) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(b"GET /chunks HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await asyncio.sleep(0.2)
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
        await writer.wait_closed()
    assert pauses
    assert body == b"493e0\r\n%b\r\n" % BIG * 40 + b"0\r\n\r\n"


async def test_an_idle_connection_is_closed_after_the_keep_alive_time_and_a_busy_one_is_not() -> None:
    async with serving([], keep_alive_s=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.monotonic()
        for _ in range(4):
            writer.write(b"GET /whole HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\nhi")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.4)
        assert time.monotonic() - began > 1.5
        async with asyncio.timeout(3):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
