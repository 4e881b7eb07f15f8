"""Tells every worker process at once that the store has changed, without asking the store.

Each write to the store has a number (`changes.seq`). The writer raises a shared number to it after the commit and
before the write is acknowledged; a reader compares that number with the one up to which it has read. `SharedGeneration`
keeps it in eight bytes of a memory-mapped file: reading them takes tens of nanoseconds and no system call, so it can be
done for every request, and whoever was told that a write is done finds every worker knowing of it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from server.errors import StoreUnavailable

_BYTES: Final = 8


class ChangeSignal(Protocol):
    """The number of the latest change that a reader must know of; it never falls."""

    def current(self) -> int:
        """Return the number. Does no I/O and takes no lock."""

    def raise_to(self, number: int) -> None:
        """Make the number at least `number`."""

    def close(self) -> None:
        """Let go of what it holds."""


class SharedGeneration:
    """The number in a memory-mapped file, shared by all processes that open the same path.

    Each process opens its own: after a fork, lock and file position would be shared with the parent. Raises `OSError`.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self.locked():
                if os.fstat(self._fd).st_size < _BYTES:
                    # Written, not only made longer: a full disk must fail here, and not as SIGBUS at a later access.
                    os.pwrite(self._fd, bytes(_BYTES), 0)
            self._map = mmap.mmap(self._fd, _BYTES)
        except BaseException:
            os.close(self._fd)
            raise
        # One aligned machine word: no reader sees half of a write.
        self._word = memoryview(self._map).cast("Q")
        self._threads = threading.Lock()

    def current(self) -> int:
        """Return the number, as any process has last raised it."""
        return self._word[0]

    def raise_to(self, number: int) -> None:
        """Make the number at least `number`, for all processes."""
        # The file lock keeps other processes out, but threads share it; hence the second lock.
        with self._threads, self.locked():
            self._word[0] = max(self._word[0], number)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file's lock, which one process at a time can have. The kernel frees it when its holder dies."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Unmap and close the file; the number stays in it."""
        self._word.release()
        self._map.close()
        os.close(self._fd)


class LocalGeneration:
    """The number in this process alone, for a database that no other process can see (SQLite in memory)."""

    def __init__(self) -> None:
        self._number = 0
        self._threads = threading.Lock()

    def current(self) -> int:
        """Return the number."""
        return self._number

    def raise_to(self, number: int) -> None:
        """Make the number at least `number`."""
        with self._threads:
            self._number = max(self._number, number)

    def close(self) -> None:
        """Do nothing: it holds nothing."""


class PolledGeneration(LocalGeneration):
    """The number as a database server last gave it: a thread asks every `interval_s`.

    For databases whose clients may be on different machines. This process sees its own writes at once and those of
    others at most one interval late. While the database cannot be asked, the number stays as it was.
    """

    def __init__(self, poll: Callable[[], int], interval_s: float) -> None:
        super().__init__()
        self._poll = poll
        self._interval_s = interval_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-changes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            try:
                self.raise_to(self._poll())
            except StoreUnavailable:
                continue  # asked again after the interval; whoever needs the store meets the error itself
