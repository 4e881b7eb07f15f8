"""Kept lines: what survives a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.selfeval_cache import KeptFile

ONE, TWO = {"text": "one \u2028\n"}, {"text": "two", "ids": [1, 2]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "kept.jsonl"


def test_what_was_added_is_there_at_once_and_when_the_file_is_read_again(path: Path) -> None:
    with KeptFile(path) as file:
        file.add("1", ONE)
        assert file.get("1") == {"key": "1", **ONE}
        with KeptFile(path) as other:
            assert other.get("1") == {"key": "1", **ONE}
        file.add("2", TWO)
    with KeptFile(path) as again:
        assert (len(again), "2" in again, "3" in again) == (2, True, False)
        assert (again.get("1"), again.get("2")) == ({"key": "1", **ONE}, {"key": "2", **TWO})


@pytest.mark.parametrize("torn", [b'{"key":"2","text":"tw', b'{"text": "\xe2\x82', b'{"text":"no key"}', b"[]"])
def test_a_torn_line_is_ignored_and_does_not_spoil_the_next(path: Path, torn: bytes) -> None:
    with KeptFile(path) as file:
        file.add("1", ONE)
    with path.open("ab") as raw:
        raw.write(torn)
    with KeptFile(path) as again:
        assert (again.ignored, len(again)) == (1, 1)
        again.add("2", TWO)
        assert again.get("2") == {"key": "2", **TWO}
    with KeptFile(path) as third:
        assert (third.get("1"), third.get("2")) == ({"key": "1", **ONE}, {"key": "2", **TWO})


def test_of_two_with_one_key_the_latest_counts(path: Path) -> None:
    with KeptFile(path) as file:
        file.add("1", ONE)
        file.add("1", TWO)
        assert file.get("1") == {"key": "1", **TWO}
    with KeptFile(path) as again:
        assert again.get("1") == {"key": "1", **TWO}


def test_nothing_goes_in_or_out_of_a_file_that_is_not_open(path: Path) -> None:
    file = KeptFile(path)
    with pytest.raises(ValueError, match="not open"):
        file.add("1", ONE)
    with file:
        file.add("1", ONE)
    with pytest.raises(ValueError, match="not open"):
        file.get("1")


def test_what_json_cannot_say_is_refused_before_it_is_written(path: Path) -> None:
    with KeptFile(path) as file, pytest.raises(ValueError, match="JSON"):
        file.add("1", {"reward": float("nan")})
    assert path.read_bytes() == b""
