"""Properties of the upstream client: what is valid arrives equal, what is not harms nobody, and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import UpstreamError
from server.upstream import Headers, Timeouts
from tests.server.awkward_server import Do, Step, answer
from tests.server.test_upstream import HELLO, LOOPS, eventually, get, talking

NewLoop = Callable[[], asyncio.AbstractEventLoop]

NEXT = b"the answer to the next request"
AFTER = answer(NEXT)
PROMPT = Timeouts(connect_s=1.0, first_token_s=1.0, stall_s=1.0, total_s=1.0)
HASTY = Timeouts(connect_s=1.0, first_token_s=0.05, stall_s=0.05, total_s=0.1)
NEVER_S = 2.0


def run(new_loop: NewLoop, scenario: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario)


@dataclass(frozen=True, slots=True)
class Answer:
    """A valid answer, and how it looks on the wire."""

    status: int
    headers: Headers
    body: bytes
    raw: bytes
    ends_at_eof: bool


# RFC 9110, 5.6.2 (token) and 5.5 (field value). Names that mean something to a client of HTTP/1.1 are left out.
TOKEN = st.text("!#$%&'*+-.^_`|~0123456789abcdefXYZ", min_size=1, max_size=12).map(str.encode)
VALUE = st.binary(max_size=30).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip())
OWS = st.sampled_from([b"", b" ", b"\t", b"  "])
HEADERS = st.lists(st.tuples(TOKEN.map(lambda name: b"x-" + name), VALUE), max_size=6)
INTERIM = st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n"])
REASON = st.sampled_from([b"", b" ", b" OK", b" Not Quite", b" \xe9"])


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """Return any answer that a server may give to a POST."""
    framing = draw(st.sampled_from(["length", "chunks", "eof", "none"]))
    status = draw(st.sampled_from([204, 304]) if framing == "none" else st.integers(200, 599))
    body = b"" if framing == "none" else draw(st.binary(max_size=200))
    if status in {204, 304}:
        framing, body = "none", b""
    headers = draw(HEADERS)
    if framing == "length":
        headers.append((b"content-length", b"%d" % len(body)))
    elif framing == "chunks":
        headers.append((draw(st.sampled_from([b"transfer-encoding", b"Transfer-Encoding"])), b"chunked"))
    headers = draw(st.permutations(headers))
    # Not after a value: llhttp does not know `chunked` when a tab follows, and would wait for the end of it all.
    lines = b"".join(name + b":" + draw(OWS) + value + b"\r\n" for name, value in headers)
    head = b"HTTP/1.1 %d%s\r\n%s\r\n" % (status, draw(REASON), lines)
    on_the_wire = _in_chunks(draw, body) if framing == "chunks" else body
    raw = draw(INTERIM) + head + on_the_wire
    return Answer(status, [(name.lower(), value) for name, value in headers], body, raw, framing == "eof")


def _in_chunks(draw: st.DrawFn, body: bytes) -> bytes:
    pieces = cut(body, draw(cuts(len(body)))) if body else ()
    extension = draw(st.sampled_from([b"", b";a", b';a="b"']))
    chunks = b"".join(b"%X%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    trailers = b"".join(b"%s: %s\r\n" % trailer for trailer in draw(HEADERS))
    return b"%s0\r\n%s\r\n" % (chunks, trailers)


def cuts(length: int) -> st.SearchStrategy[list[int]]:
    """Return where to cut something of `length` bytes, at most in ten places."""
    return st.lists(st.integers(1, max(1, length - 1)), max_size=10, unique=True).map(sorted)


def cut(whole: bytes, at: Sequence[int]) -> list[bytes]:
    pieces = [whole[begin:end] for begin, end in zip([0, *at], [*at, len(whole)], strict=True)]
    return [piece for piece in pieces if piece]


@LOOPS
@settings(max_examples=100)
@given(given_answer=answers(), data=st.data(), stream=st.booleans())
def test_any_valid_answer_cut_anywhere_arrives_equal(
    new_loop: NewLoop, given_answer: Answer, data: st.DataObject, stream: bool
) -> None:
    pieces = cut(given_answer.raw, data.draw(cuts(len(given_answer.raw))))
    end: list[Step] = [Do.CLOSE] if given_answer.ends_at_eof else [Do.READ, AFTER]

    async def scenario() -> None:
        async with talking([Do.READ, *pieces, *end], [Do.READ, AFTER], timeouts=PROMPT) as (server, client):
            response = await client.request("POST", "/", stream=stream)
            assert response.status == given_answer.status
            assert response.headers == given_answer.headers
            assert await response.read() == given_answer.body
            assert await get(client) == NEXT
            assert len(server.peers) == 1 + given_answer.ends_at_eof

    run(new_loop, scenario())


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Return an answer with up to four things wrong, or right by chance."""
    raw = draw(answers()).raw
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(raw)))
        end = draw(st.integers(begin, min(len(raw), begin + 40)))
        part = raw[begin:end]
        instead = draw(
            st.one_of(
                st.sampled_from([b"", part + part, part.swapcase(), part[::-1], HELLO, b"\r\n", b"\r\n\r\n", b"\0"]),
                st.sampled_from(
                    [b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n"]
                ),
                st.sampled_from([b"0", b"99999999999999999999", b"-1", b"f" * 20, b"HTTP/1.1 101 Go\r\n\r\n"]),
                st.binary(max_size=8),
            )
        )
        raw = raw[:begin] + instead + raw[end:]
    return raw


@LOOPS
@settings(max_examples=150)
@given(
    raw=st.one_of(spoilt(), st.binary(max_size=60)),
    data=st.data(),
    end=st.sampled_from([Do.CLOSE, Do.HALF_CLOSE, Do.RESET, Do.CLOSE, None]),
    stream=st.booleans(),
)
def test_no_answer_however_spoilt_hangs_or_raises_anything_else_or_reaches_the_next_request(
    new_loop: NewLoop, raw: bytes, data: st.DataObject, end: Do | None, stream: bool
) -> None:
    pieces = cut(raw, data.draw(cuts(len(raw))))
    script: list[Step] = [Do.READ, *pieces] if end is None else [Do.READ, *pieces, end]

    async def scenario() -> None:
        async with talking([*script, Do.READ, AFTER], [Do.READ, AFTER], timeouts=PROMPT) as (server, client):
            patience_s = NEVER_S if end else 0.03  # half an answer on a connection that stays open
            with contextlib.suppress(UpstreamError, *() if end else (TimeoutError,)):
                await asyncio.wait_for(get(client, stream=stream), patience_s)
            first = server.peers[0]
            assert await eventually(lambda: first.gone.is_set() or first.steps_done >= len(script))
            assert await asyncio.wait_for(get(client), NEVER_S) == NEXT

    run(new_loop, scenario())


SCRIPTS: list[list[Step]] = [
    [Do.READ, HELLO] * 20,
    [Do.READ, 0.002, HELLO] * 20,
    [Do.READ, HELLO[:-2], 0.001, HELLO[-2:]] * 20,
    [Do.READ, HELLO, Do.READ, Do.CLOSE],
    [Do.READ, HELLO, Do.READ, Do.RESET],
    [Do.READ, HELLO, Do.CLOSE],
    [Do.READ, HELLO + HELLO],
    [Do.READ, b"garbage"],
    [Do.READ],
    [Do.READ, HELLO[:-1]],
    [Do.READ, HELLO[:-1], 0.001, Do.CLOSE],
    [Do.RESET],
    [Do.CLOSE],
]
# What a user of the client may do next: begin a request, cancel or close the n-th, or let time pass.
ACTIONS = st.one_of(
    st.tuples(st.just("begin"), st.booleans()),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.0, 0.001, 0.003])),
)


@LOOPS
@settings(max_examples=100)
@given(
    scripts=st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=6),
    actions=st.lists(ACTIONS, min_size=4, max_size=25),
    max_connections=st.integers(1, 3),
    shut_down=st.booleans(),
)
def test_no_connection_or_permit_is_lost_whatever_users_and_servers_do(
    new_loop: NewLoop,
    scripts: list[list[Step]],
    actions: list[tuple[str, float]],
    max_connections: int,
    shut_down: bool,
) -> None:
    async def scenario() -> None:
        tasks: list[asyncio.Task[bytes]] = []
        async with talking(*scripts, SCRIPTS[0], timeouts=HASTY, max_connections=max_connections) as (_, client):
            for action, value in actions:
                if action == "begin":
                    tasks.append(asyncio.create_task(get(client, stream=bool(value))))
                elif action == "wait":
                    await asyncio.sleep(value)
                elif tasks:
                    tasks[int(value) % len(tasks)].cancel()
                assert sum(not connection.closed for connection in client._pool.open) <= max_connections
            if shut_down:
                await client.aclose()
            else:
                for task in tasks[::2]:
                    task.cancel()
            outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), NEVER_S)
            for outcome in outcomes:
                assert outcome == b"hello" or isinstance(outcome, UpstreamError | asyncio.CancelledError)

    run(new_loop, scenario())
