"""An HTTP server that misbehaves on purpose: what it does on each connection is a plain script.

A script is a sequence of steps. `bytes` are written as one segment, a `float` is a pause in seconds, an `asyncio.Event`
is waited for, and a `Do` is done. Segments that follow each other without a pause are still read one by one. When the
script is over the connection stays open until the client closes it. The server knows just enough of HTTP to tell where
a request ends; whatever the client sends is read at any time, so that its closing is noticed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


class Do(enum.Enum):
    READ = "wait for one more whole request"
    CLOSE = "close, once everything is written"
    HALF_CLOSE = "end our stream, and go on reading"
    RESET = "reset the connection"
    STOP_READING = "read nothing more"


Step = bytes | float | asyncio.Event | Do
Script = Sequence[Step]

# Loop iterations between two segments: enough for a client on the same loop to read the first one by itself.
_TICKS = 3


class Peer(asyncio.Protocol):
    """One connection as the server sees it.

    requests: whole ones so far. gone: set when the connection is. steps_done: of its script.
    """

    _transport: asyncio.Transport

    def __init__(self, server: AwkwardServer, script: Script) -> None:
        self._server = server
        self._script = script
        self._received = bytearray()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.requests: list[bytes] = []
        self.steps_done = 0
        self.gone = asyncio.Event()

    @property
    def unsent_bytes(self) -> int:
        """What the client's side does not take."""
        return self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # start_server gives a Transport
        self._server.peers.append(self)
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := _end_of_request(self._received)) is not None:
            self.requests.append(bytes(self._received[:end]))
            del self._received[:end]
        self._more.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        if self._task is not None:
            self._task.cancel()

    async def _follow(self) -> None:
        read = 0
        for step in self._script:
            if isinstance(step, bytes):
                self._transport.write(step)
                for _ in range(_TICKS):
                    await asyncio.sleep(0)
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Do.READ:
                read += 1
                while len(self.requests) < read:
                    self._more.clear()
                    await self._more.wait()
            else:
                self._do(step)
            self.steps_done += 1

    def _do(self, step: Do) -> None:
        if step is Do.CLOSE:
            self._transport.close()
        elif step is Do.HALF_CLOSE:
            self._transport.write_eof()
        elif step is Do.STOP_READING:
            self._transport.pause_reading()
        else:
            linger_not_at_all = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not_at_all)
            self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()

    def write_now(self, data: bytes) -> None:
        """Put `data` on the wire before the loop does anything else."""
        os.write(self._transport.get_extra_info("socket").fileno(), data)

    def end_now(self) -> None:
        """End both streams before the loop does anything else."""
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


class AwkwardServer:
    """Follows the k-th script on the k-th connection, and the last one on all that come later.

    peers: every connection there ever was, in the order in which they came.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.peers: list[Peer] = []
        self.url = ""

    @property
    def open_connections(self) -> int:
        return sum(not peer.gone.is_set() for peer in self.peers)

    @property
    def requests(self) -> list[bytes]:
        """Every whole request, connection by connection."""
        return [request for peer in self.peers for request in peer.requests]

    @contextlib.asynccontextmanager
    async def running(self, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Listen on a port of the system's choice; yield the base URL."""
        server = await asyncio.get_running_loop().create_server(self._accept, host, 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            server.close()
            for peer in self.peers:
                peer.abort()
            for peer in self.peers:
                await peer.gone.wait()

    def _accept(self) -> Peer:
        return Peer(self, self._scripts[min(len(self.peers), len(self._scripts) - 1)])


def _end_of_request(received: bytearray) -> int | None:
    end_of_head = received.find(b"\r\n\r\n")
    if end_of_head < 0:
        return None
    length = re.search(rb"\r\ncontent-length: (\d+)\r\n", received[: end_of_head + 2])
    end = end_of_head + 4 + (int(length[1]) if length else 0)
    return end if len(received) >= end else None


def answer(body: bytes, *, status: int = 200, headers: bytes = b"") -> bytes:
    """Return a whole answer with a content-length. `headers` are lines that each end in CRLF."""
    return b"HTTP/1.1 %d Any Reason\r\n%scontent-length: %d\r\n\r\n%s" % (status, headers, len(body), body)


def chunked(*chunks: bytes, headers: bytes = b"", trailers: bytes = b"") -> bytes:
    """Return a whole answer in chunks."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\n%stransfer-encoding: chunked\r\n\r\n%s0\r\n%s\r\n" % (headers, body, trailers)
