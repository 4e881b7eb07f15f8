"""Files of lines, compressed or not."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Final, TextIO, cast

COMPRESSED: Final = ".xz"


def open_lines(path: Path) -> TextIO:
    """Return a file of UTF-8 text to be read line by line, through xz where its name ends so. Raises `OSError`.

    Lines end in a line feed only: a text may hold other separators. A torn character is replaced: its line is torn too.
    """
    if path.suffix == COMPRESSED:
        return cast("TextIO", lzma.open(path, "rt", encoding="utf-8", errors="replace", newline="\n"))
    return path.open(encoding="utf-8", errors="replace", newline="\n")
