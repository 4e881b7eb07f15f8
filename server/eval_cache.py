"""Recordings on disk: a file of lines that is only ever appended to, so that a killed run loses nothing it has."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from adaptive.evaluation.recording import Recording
from adaptive.lines import COMPRESSED, open_lines


class RecordingFile:
    """The recordings of one file by key; of several with one key the latest. A context manager while it is added to.

    ignored: lines that could not be read: torn by a kill, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recordings: dict[str, Recording] = {}
        self.ignored = 0
        self._descriptor: int | None = None
        lines = open_lines(path) if path.exists() else io.StringIO()
        with lines:
            self._read(lines)

    def _read(self, lines: Iterable[str]) -> None:
        for line in filter(None, (each.rstrip("\n") for each in lines)):
            recording = Recording.from_line(line)
            if recording is None:
                self.ignored += 1
            else:
                self.recordings[recording.key] = recording

    def __enter__(self) -> Self:
        if self.path.suffix == COMPRESSED:
            raise ValueError(f"{self.path} is compressed, and can only be read")
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

    def add(self, recording: Recording) -> None:
        """Write a recording, in one piece. Raises `ValueError` outside of the context."""
        if self._descriptor is None:
            raise ValueError("the file is not open")
        os.write(self._descriptor, recording.to_line().encode() + b"\n")
        self.recordings[recording.key] = recording

    def has(self, key: str, checkpoints: Collection[int], scorers: Collection[str] = ()) -> bool:
        """Return True for a candidate that was scored at all of these checkpoints by all of these scorers."""
        found = self.recordings.get(key)
        return found is not None and set(checkpoints) <= set(found.checkpoints) and set(scorers) <= set(found.scorers)
