"""What is kept of a run of `preamble selfeval data`: files of lines by key that are only ever appended to.

A killed run loses nothing that it has. Only where a line stands is kept in memory: there may be gigabytes of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from server.line_file import LineFile


class KeptFile(LineFile):
    """JSON objects of one file by their `key`; of several with one key the latest. A context manager while in use.

    Writing happens in one piece, a line at a time. ignored: lines that could not be read, torn by a kill.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ignored = 0
        self._places: dict[str, tuple[int, int]] = {}
        if path.exists():
            self._index()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, plain: dict[str, Any]) -> None:
        """Write an object. Raises `ValueError` outside of the context and for what JSON cannot say, `OSError`."""
        line = json.dumps({"key": key, **plain}, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._append(line)
        self._places[key] = (os.fstat(self._descriptor).st_size - len(line), len(line))

    def get(self, key: str) -> dict[str, Any]:
        """Return the object of a key that is there. Raises `KeyError`, and `ValueError` outside of the context."""
        start, length = self._places[key]
        plain: dict[str, Any] = json.loads(os.pread(self._descriptor, length, start))
        return plain

    def _index(self) -> None:
        start = 0
        with self.path.open("rb") as lines:
            for line in lines:
                try:
                    self._places[json.loads(line)["key"]] = (start, len(line))
                except (ValueError, KeyError, TypeError):
                    self.ignored += bool(line.strip())
                start += len(line)
