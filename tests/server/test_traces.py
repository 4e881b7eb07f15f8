"""Traces as files: found by every worker, gone when too old or too many."""

from __future__ import annotations

import itertools
from pathlib import Path

from server.traces import TraceFiles, TraceWriter


class Hours:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


def test_a_trace_is_found_by_another_worker_whatever_its_id(tmp_path: Path) -> None:
    ours, theirs = (TraceFiles(tmp_path / "traces", ttl_s=60, most=10) for _ in range(2))
    ours.put("../odd/id", "alice", {"a": 1})
    found = theirs.get("../odd/id")
    assert found is not None
    assert (found.user, found.trace) == ("alice", {"a": 1})
    assert theirs.get("another") is None
    assert (tmp_path / "traces").stat().st_mode & 0o077 == 0


def test_a_trace_is_gone_after_its_time(tmp_path: Path) -> None:
    now = Hours()
    files = TraceFiles(tmp_path, ttl_s=60, most=10, now=now)
    files.put("one", "alice", {})
    now.at += 59
    assert files.get("one") is not None
    now.at += 2
    assert files.get("one") is None
    files.put("two", "alice", {})
    files.put("three", "alice", {})
    assert files.get("three") is not None


def test_there_are_never_many_more_than_allowed_and_the_latest_are_kept(tmp_path: Path) -> None:
    now = Hours()
    files = TraceFiles(tmp_path, ttl_s=3600, most=20, now=now)
    for number in range(100):
        now.at += 1
        files.put(f"id-{number}", "alice", {})
        assert len(list(tmp_path.iterdir())) <= 20 + 20 // 8 + 1
    assert files.get("id-99") is not None
    assert files.get("id-0") is None


def test_a_full_directory_is_not_looked_through_for_every_trace(tmp_path: Path) -> None:
    now = Hours()
    files = TraceFiles(tmp_path, ttl_s=3600, most=320, now=now)
    left = []
    for number in range(400):
        now.at += 1
        files.put(f"id-{number}", "alice", {})
        left.append(len(list(tmp_path.iterdir())))
    assert max(left) <= 320
    looks = sum(after <= before for before, after in itertools.pairwise(left[300:]))
    assert 5 <= looks <= 12


async def test_a_full_disk_does_not_fail_the_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    await TraceWriter(TraceFiles(tmp_path / "file", ttl_s=60, most=10)).keep("one", "alice", {})
