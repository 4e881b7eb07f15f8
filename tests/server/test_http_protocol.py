"""The head of an answer leaves with the first piece of its body, and in any case at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from server.http_protocol import HeadHoldingTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Recorder(asyncio.Transport):
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")


async def held() -> tuple[Recorder, HeadHoldingTransport]:
    recorder = Recorder()
    return recorder, HeadHoldingTransport(recorder, asyncio.get_running_loop())


async def test_head_and_body_leave_in_one_write() -> None:
    recorder, transport = await held()
    transport.write(HEAD)
    transport.write(b"hi")
    assert recorder.done == [HEAD + b"hi"]
    await asyncio.sleep(0)
    assert recorder.done == [HEAD + b"hi"]


async def test_a_head_that_nothing_follows_leaves_in_the_next_iteration_of_the_loop() -> None:
    recorder, transport = await held()
    transport.write(HEAD)
    assert recorder.done == []
    await asyncio.sleep(0)
    assert recorder.done == [HEAD]


async def test_what_is_no_head_leaves_at_once() -> None:
    recorder, transport = await held()
    transport.write(b"HTTP/ is how this chunk begins")
    transport.write(b"chunk")
    transport.writelines([b"a", b"b"])
    assert recorder.done == [b"HTTP/ is how this chunk begins", b"chunk", b"ab"]


async def test_closing_writes_the_head_first_and_aborting_drops_it() -> None:
    recorder, transport = await held()
    transport.write(HEAD)
    transport.close()
    assert recorder.done == [HEAD, "close"]
    recorder, transport = await held()
    transport.write(HEAD)
    transport.abort()
    await asyncio.sleep(0)
    assert recorder.done == ["abort"]
