"""The guard, with real processes: nothing outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server import engine_guard

# Writes the ids of itself, a child of its own session and that one's child, then sleeps; deaf to SIGTERM on request.
FAMILY = """
import os, signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
print("pids", os.getpid(), child.pid, int(child.stdout.readline()), flush=True)
time.sleep(60)
"""


def start(log: Path, *command: str, max_bytes: int = 10_000, grace_s: float = 0.3) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", engine_guard.__file__, str(log), str(max_bytes), str(grace_s), *command],
        stdin=subprocess.PIPE,
    )


def eventually(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    """Return True while the process runs; one that has ended and was not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def family_of(log: Path) -> list[int]:
    assert eventually(lambda: log.exists() and log.read_text().count("\n") > 0)
    pids = [int(word) for word in log.read_text().split()[1:4]]
    assert all(alive(pid) for pid in pids)
    return pids


@pytest.mark.parametrize("deaf", [False, True])
def test_closing_the_lifeline_ends_every_generation(tmp_path: Path, deaf: bool) -> None:
    guard = start(tmp_path / "log", sys.executable, "-c", FAMILY, *(["deaf"] if deaf else []))
    pids = family_of(tmp_path / "log")
    assert guard.stdin is not None
    guard.stdin.close()
    assert guard.wait(10) == 128 + (signal.SIGKILL if deaf else signal.SIGTERM)
    assert not any(alive(pid) for pid in pids)


def test_sigterm_to_the_guard_ends_every_generation(tmp_path: Path) -> None:
    with start(tmp_path / "log", sys.executable, "-c", FAMILY) as guard:
        pids = family_of(tmp_path / "log")
        guard.terminate()
        guard.wait(10)
    assert not any(alive(pid) for pid in pids)


def test_kill_9_of_the_owner_ends_every_generation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    owner_code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-I', {engine_guard.__file__!r}, {str(log)!r}, '10000', '0.3',"
        f" sys.executable, '-c', {FAMILY!r}], stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", owner_code]) as owner:
        pids = family_of(log)
        owner.kill()
        assert eventually(lambda: not any(alive(pid) for pid in pids))


def test_kill_9_of_the_guard_itself_ends_the_command(tmp_path: Path) -> None:
    with start(tmp_path / "log", "sleep", "60") as guard:
        children = Path(f"/proc/{guard.pid}/task/{guard.pid}/children")
        assert eventually(lambda: bool(children.read_text().split()))
        command = int(children.read_text().split()[0])
        # The guard sets the death signal between fork and exec.
        assert eventually(lambda: "sleep" in Path(f"/proc/{command}/cmdline").read_text())
        guard.kill()
    assert eventually(lambda: not alive(command))


def test_a_command_that_dies_takes_those_it_started_along(tmp_path: Path) -> None:
    with start(tmp_path / "log", sys.executable, "-c", FAMILY) as guard:
        pids = family_of(tmp_path / "log")
        os.kill(pids[0], signal.SIGKILL)
        assert guard.wait(10) == 128 + signal.SIGKILL
    assert not any(alive(pid) for pid in pids)


def test_the_exit_status_of_the_command_is_passed_on(tmp_path: Path) -> None:
    with start(tmp_path / "log", "sh", "-c", "exit 7") as guard:
        assert guard.wait(10) == 7


def test_output_until_the_last_byte_is_in_the_log(tmp_path: Path) -> None:
    with start(tmp_path / "log", "sh", "-c", "echo one; echo two >&2; printf three") as guard:
        guard.wait(10)
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree"


def test_the_log_and_its_predecessor_are_bounded(tmp_path: Path) -> None:
    with start(
        tmp_path / "log", "sh", "-c", "for i in $(seq 100); do echo $i; sleep 0.001; done", max_bytes=100
    ) as guard:
        guard.wait(10)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 100
    assert (tmp_path / "log").read_text().endswith("100\n")


def test_the_log_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    with start(tmp_path / "log", "true") as guard:
        guard.wait(10)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_what_the_command_leaves_in_the_directory_for_temporary_files_goes_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    leaves = "import tempfile; print(tempfile.mkdtemp(), flush=True)"
    with start(log, sys.executable, "-c", leaves) as guard:
        assert guard.wait(10) == 0
    left = Path(log.read_text().strip())
    assert left.parent.name.startswith("preamble-vllm-")
    assert not left.parent.exists()
