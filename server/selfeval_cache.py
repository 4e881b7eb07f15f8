"""What is kept of a run of `preamble selfeval data`: files of lines by key that are only ever appended to.

A killed run loses nothing that it has. Only where a line stands is kept in memory: there may be gigabytes of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class KeptFile:
    """JSON objects of one file by their `key`; of several with one key the latest. A context manager while in use.

    Writing happens in one piece, a line at a time. ignored: lines that could not be read, torn by a kill.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ignored = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._descriptor: int | None = None
        if path.exists():
            self._index()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # close the torn line, or the next one would be lost with it
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, plain: dict[str, Any]) -> None:
        """Write an object. Raises `ValueError` outside of the context and for what JSON cannot say, `OSError`."""
        line = json.dumps({"key": key, **plain}, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        descriptor = self._open()
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(f"{self.path} took {written} of {len(line)} bytes; is the disk full?")
        self._places[key] = (os.fstat(descriptor).st_size - len(line), len(line))

    def get(self, key: str) -> dict[str, Any]:
        """Return the object of a key that is there. Raises `KeyError`, and `ValueError` outside of the context."""
        start, length = self._places[key]
        plain: dict[str, Any] = json.loads(os.pread(self._open(), length, start))
        return plain

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError("the file is not open")
        return self._descriptor

    def _index(self) -> None:
        start = 0
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    self._places[json.loads(line)["key"]] = (start, len(line))
                except (ValueError, KeyError, TypeError):
                    self.ignored += bool(line.strip())
                start += len(line)
