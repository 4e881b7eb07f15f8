"""A file of lines that is only ever appended to, so that a killed run loses nothing it has."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self


class LineFile:
    """A context manager while it is written to. A line is written in one piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: int | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._opened = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._opened).st_size
        if size and os.pread(self._opened, 1, size - 1) != b"\n":
            os.write(self._opened, b"\n")  # close the torn line, or the next one would be lost with it
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    @property
    def _descriptor(self) -> int:
        """The open file. Raises `ValueError` outside of the context."""
        if self._opened is None:
            raise ValueError("the file is not open")
        return self._opened

    def _append(self, line: bytes) -> None:
        """Write a line, its end included. Raises `ValueError` outside of the context, `OSError` if it does not fit."""
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(f"{self.path} took {written} of {len(line)} bytes; is the disk full?")
