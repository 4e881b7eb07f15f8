"""Logs are events with fields, one JSON line each, and never hold what was said."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator

import orjson
import pytest
import structlog

from server.logs import AccessLog, configure_logging

FIELDS = {
    "request_id": "r1",
    "method": "POST",
    "route": "chat_completions",
    "status": 200,
    "user": "alice",
    "constitution": "con_x@1",
    "duration_s": 0.1234567,
    "request_bytes": 10,
    "response_bytes": 20,
}


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Give back the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def test_a_request_reaches_the_stream_soon_as_one_json_line() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    log.write(**FIELDS)  # type: ignore[arg-type]  # the fields above have these types
    assert stream.getvalue() == ""
    await asyncio.sleep(0.3)
    (line,) = stream.getvalue().splitlines()
    written = orjson.loads(line)
    assert written.items() >= {**FIELDS, "duration_s": 0.123457, "event": "request"}.items()


async def test_many_requests_are_written_in_batches_and_none_is_lost() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    for _ in range(1000):
        log.write(**FIELDS)  # type: ignore[arg-type]  # the fields above have these types
    assert 0 < len(stream.getvalue().splitlines()) < 1000
    log.flush()
    assert len(stream.getvalue().splitlines()) == 1000


def test_events_of_ours_and_of_libraries_become_json_lines(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    structlog.get_logger("server.x").info("store_opened", path="somewhere")
    logging.getLogger("uvicorn.error").warning("from a %s", "library")
    logging.getLogger("uvicorn.error").debug("not severe enough")
    first, second = (orjson.loads(line) for line in stream.getvalue().splitlines())
    assert first["event"] == "store_opened"
    assert first["path"] == "somewhere"
    assert second["event"] == "from a library"
    assert second["level"] == "warning"


def test_an_exception_keeps_its_traceback(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    try:
        int("a reason")
    except ValueError:
        structlog.get_logger("server.x").exception("request_failed")
    assert "a reason" in orjson.loads(stream.getvalue())["exception"]
