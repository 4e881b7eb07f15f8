"""What is written in one iteration of the loop leaves in one write; and the application learns of a hang-up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from server.http_protocol import HoldingTransport

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
