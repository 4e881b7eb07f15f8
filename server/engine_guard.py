"""Run one command so that nothing of it outlives whoever started it. Run as a script; standard library only.

    python engine_guard.py LOG_FILE MAX_LOG_BYTES GRACE_S COMMAND...

Standard input is the lifeline: the guard stops the command when it reads the end of it, and the kernel closes the
other end however the owner goes: by `kill -9` too, and whichever of its threads started the guard (a parent-death
signal alone would be sent when that thread ends). vLLM starts processes of its own, which survive when only their
parent is killed; the guard adopts these (PR_SET_CHILD_SUBREAPER) and ends them as well.

The command's output goes to LOG_FILE, which is moved to LOG_FILE.1 when it reaches MAX_LOG_BYTES, so that the two
never take more than twice that. The exit status is the command's, or 128 + N when signal N ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

POLL_S = 0.1
# How long the processes of an ended command may take to clean up after themselves.
STRAGGLERS_S = 3.0
# A socket's path has at most 107 characters (unix(7)), and vLLM's names and our directory take 60 of them.
LONGEST_TMPDIR = 47


class BoundedLog:
    """An append-only file that is moved aside at `max_bytes`."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._open()

    def _open(self) -> None:
        # Owner only: a model server's log can quote requests when somebody switches that on.
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, text: bytes) -> None:
        """Append `text`. A full disk loses log lines; it does not end the engine."""
        with contextlib.suppress(OSError):
            if self._size + len(text) > self._max_bytes:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                os.close(self._descriptor)
                self._open()
            os.write(self._descriptor, text)
            self._size += len(text)


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) where there is one; without it only the lifeline protects."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _pump(sources: list[int], log: BoundedLog) -> list[int]:
    """Wait a moment for input, log what is not from standard input, and return the sources that have not ended."""
    ready, _, _ = select.select(sources, [], [], POLL_S)
    ended = set()
    for source in ready:
        text = os.read(source, 65536)
        if not text:
            ended.add(source)
        elif source != 0:
            log.write(text)
    return [source for source in sources if source not in ended]


def _group_exists(leader: int) -> bool:
    """Return True while a process of the group runs. Reaps those that were adopted and have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-leader, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def _end_adopted() -> None:
    """Kill and reap what the command left behind, generation after generation."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        with contextlib.suppress(OSError):
            for pid in children.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def guard(command: list[str], log: BoundedLog, grace_s: float, stop_asked: Callable[[], bool]) -> int:
    """Run `command` until it ends, standard input ends or `stop_asked()`; return its exit status (see above)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    # vLLM leaves its sockets behind in the directory for temporary files, so it gets one that goes with it.
    parent = tempfile.gettempdir()
    if len(parent) > LONGEST_TMPDIR:
        parent = "/tmp"  # noqa: S108 -- the directory made in it is the owner's alone
    with tempfile.TemporaryDirectory(prefix="preamble-vllm-", dir=parent, ignore_cleanup_errors=True) as temporary:
        return _guard(command, log, grace_s, stop_asked, temporary)


def _guard(command: list[str], log: BoundedLog, grace_s: float, stop_asked: Callable[[], bool], temporary: str) -> int:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"TMPDIR": temporary},
        # The second line of defence: the command is told to stop even when the guard itself is killed.
        preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 - safe: the guard has one thread
    )
    assert child.stdout is not None  # noqa: S101 - for the type checker: stdout=PIPE above
    output = child.stdout.fileno()
    sources = [0, output]
    while child.poll() is None and 0 in sources and not stop_asked():
        sources = _pump(sources, log)

    # Ask first: vLLM then ends its own processes and removes its shared memory.
    if child.poll() is None:
        child.terminate()
    sources = [source for source in sources if source == output]
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        sources = _pump(sources, log)
    deadline = time.monotonic() + min(grace_s, STRAGGLERS_S)
    while child.poll() is not None and _group_exists(child.pid) and time.monotonic() < deadline:
        sources = _pump(sources, log)
    # Then insist.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    _end_adopted()
    while sources and select.select(sources, [], [], 0)[0]:
        sources = _pump(sources, log)
    return 128 - status if status < 0 else status


def main() -> int:
    """Run the guard on the arguments of the process."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, _frame: asked.append(signum))
    log_file, max_bytes, grace_s, *command = sys.argv[1:]
    return guard(command, BoundedLog(Path(log_file), int(max_bytes)), float(grace_s), lambda: bool(asked))


if __name__ == "__main__":
    sys.exit(main())
