from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from adaptive.lines import open_lines

TEXT = 'one\u2028 still one\n{"two": "é"}\nthree'


@pytest.mark.parametrize("name", ["lines.jsonl", "lines.jsonl.xz"])
def test_lines_end_in_line_feeds_only_compressed_or_not(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    content = TEXT.encode()
    file.write_bytes(lzma.compress(content) if name.endswith(".xz") else content)
    with open_lines(file) as lines:
        assert list(lines) == ["one\u2028 still one\n", '{"two": "é"}\n', "three"]


def test_a_torn_character_is_part_of_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "torn.jsonl"
    file.write_bytes(b"whole\n" + "é".encode()[:1])
    with open_lines(file) as lines:
        assert list(lines) == ["whole\n", "\ufffd"]


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_lines(tmp_path / "nowhere.jsonl.xz")
