"""Recordings on disk: a file of lines that is only ever appended to, so that a killed run loses nothing it has."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

from adaptive.evaluation.recording import Recording
from adaptive.lines import COMPRESSED, open_lines
from server.line_file import LineFile


class RecordingFile(LineFile):
    """The recordings of one file by key; of several with one key the latest. A context manager while it is added to.

    ignored: lines that could not be read: torn by a kill, or of another format.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.recordings: dict[str, Recording] = {}
        self.ignored = 0
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
        return super().__enter__()

    def add(self, recording: Recording) -> None:
        """Write a recording, in one piece. Raises `ValueError` outside of the context, `OSError`."""
        self._append(recording.to_line().encode() + b"\n")
        self.recordings[recording.key] = recording

    def has(self, key: str, checkpoints: Collection[int], scorers: Collection[str] = ()) -> bool:
        """Return True for a candidate that was scored at all of these checkpoints by all of these scorers."""
        found = self.recordings.get(key)
        return found is not None and set(checkpoints) <= set(found.checkpoints) and set(scorers) <= set(found.scorers)
