"""Traces of sampled requests, kept for a while as files, so that every worker finds those of the others.

A file is named by the hash of the response's id and begins with who may read it. What is too old, or too many, goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

_SUFFIX: Final = ".json"
_LONGEST_WAIT_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """A trace and whose request it was."""

    user: str
    trace: dict[str, Any]


class TraceFiles:
    """The files in one directory. ttl_s: how long one is kept, in seconds. most: how many. Its methods do file I/O."""

    def __init__(self, directory: Path, *, ttl_s: float, most: int, now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._ttl_s = ttl_s
        self._most = most
        self._now = now
        self._room = 0  # how many may be written before the directory has to be looked through again

    def put(self, response_id: str, user: str, trace: Mapping[str, Any]) -> None:
        """Keep a trace. Raises `OSError`."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(response_id)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(orjson.dumps({"user": user, "trace": trace}))
        os.utime(partial, (self._now(), self._now()))
        partial.replace(path)
        self._room -= 1
        if self._room < 0:
            # Looking through a full directory takes milliseconds, so not for every trace, and room for several is made.
            self._sweep(self._most - self._most // 8)
            self._room = self._most // 32

    def get(self, response_id: str) -> StoredTrace | None:
        """Return the trace of that response, None if there is none any more."""
        path = self._path(response_id)
        try:
            if path.stat().st_mtime < self._now() - self._ttl_s:
                return None
            value = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return StoredTrace(value["user"], value["trace"])

    def _path(self, response_id: str) -> Path:
        return self._directory / (hashlib.sha256(response_id.encode()).hexdigest() + _SUFFIX)

    def _sweep(self, most: int) -> None:
        """Remove what is too old, and the oldest of what is more than `most`."""
        found = []
        for entry in os.scandir(self._directory):
            try:
                found.append((entry.stat().st_mtime, entry.path))
            except FileNotFoundError:
                continue  # another worker sweeps too
        found.sort(reverse=True)
        oldest = self._now() - self._ttl_s
        kept = sum(at >= oldest for at, _ in found[:most])
        for _, path in found[kept:]:
            Path(path).unlink(missing_ok=True)


class TraceWriter:
    """Writes traces off the request path, in threads."""

    def __init__(self, files: TraceFiles) -> None:
        self._files = files
        self._writing: set[asyncio.Task[None]] = set()

    async def keep(self, response_id: str, user: str, trace: Mapping[str, Any]) -> None:
        """Write a trace. Returns when it is written, so that who has the answer finds it, or when that takes long."""
        writing = asyncio.create_task(self._write(response_id, user, trace))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.wait({writing}, timeout=_LONGEST_WAIT_S)

    async def _write(self, response_id: str, user: str, trace: Mapping[str, Any]) -> None:
        try:
            await asyncio.to_thread(self._files.put, response_id, user, trace)
        except OSError as error:
            structlog.get_logger(__name__).warning("trace_not_kept", error=str(error))
