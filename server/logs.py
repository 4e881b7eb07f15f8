"""Structured logs: one event per line, with fields. Prompts and answers never appear, only their sizes.

structlog renders everything, uvicorn's own messages too. The access log is apart: at a thousand requests a second a
general logging pipeline would cost more than the proxying, so its lines are made directly and written in batches.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import UTC, datetime
from typing import IO, Any, Final

import orjson
import structlog
from structlog.typing import Processor

_FLUSH_INTERVAL_S: Final = 0.2
_FLUSH_LINES: Final = 512


def _json_renderer(_logger: Any, _name: str, event: structlog.typing.EventDict) -> str:
    return orjson.dumps(event, default=str).decode()


def configure_logging(level: str, log_format: str, stream: IO[str] = sys.stderr) -> None:
    """Send structlog and the standard library's logging to `stream`.

    level: debug, info, warning or error. log_format: json, console, or auto (console on a terminal).
    """
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    renderer: Processor = structlog.dev.ConsoleRenderer() if console else _json_renderer
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        shared.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Each worker opens the store, and each time Alembic would tell what database it talks to.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class AccessLog:
    """Writes one JSON line per request to `stream`, a batch at a time."""

    def __init__(self, stream: IO[str] = sys.stderr) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(
        self,
        *,
        request_id: str,
        method: str,
        route: str,
        status: int,
        user: str | None,
        constitution: str | None,
        duration_s: float,
        request_bytes: int,
        response_bytes: int,
    ) -> None:
        """Note a finished request. It reaches the stream within 0.2 s."""
        self._lines.append(
            orjson.dumps(
                {
                    "event": "request",
                    "level": "info",
                    "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "user": user,
                    "constitution": constitution,
                    "duration_s": round(duration_s, 6),
                    "request_bytes": request_bytes,
                    "response_bytes": response_bytes,
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
        )
        if len(self._lines) >= _FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Write what is held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write(b"".join(lines).decode())
            self._stream.flush()
