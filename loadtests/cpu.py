"""How much CPU a process and its children have used, to the nanosecond.

`utime + stime` of `/proc/<pid>/stat` counts in ticks of 10 ms, which is half of what nginx needs for a thousand
requests. The scheduler's own account of each thread, `/proc/<pid>/task/<tid>/schedstat`, has no such grain; it forgets
threads that have ended, so both are read and compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU seconds, user and system together: `exact_s` from the scheduler, `ticks_s` from the process statistics."""

    exact_s: float
    ticks_s: float

    def __sub__(self, earlier: CpuTime) -> CpuTime:
        return CpuTime(self.exact_s - earlier.exact_s, self.ticks_s - earlier.ticks_s)

    def agrees(self, processes: int = 4) -> bool:
        """Tell whether both accounts say the same, up to the grain of the ticks of that many processes and 5 %."""
        return abs(self.exact_s - self.ticks_s) <= 2 * processes * _TICK_S + 0.05 * self.exact_s


def descendants(pid: int) -> tuple[int, ...]:
    """Return `pid` and the ids of its children, their children, and so on, as they are now."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat_fields(int(entry.name))[1])
            except OSError:
                continue  # ended since the directory was read
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(children.get(each, ()))
    return tuple(found)


def cpu_time(pid: int) -> CpuTime:
    """Return what `pid` and its descendants have used so far. Raises `OSError` when there is no such process."""
    exact_ns, ticks = 0, 0
    for each in descendants(pid):
        fields = _stat_fields(each)
        ticks += int(fields[11]) + int(fields[12])
        for thread in (_PROC / str(each) / "task").iterdir():
            exact_ns += int((thread / "schedstat").read_text().split()[0])
    return CpuTime(exact_ns / 1e9, ticks * _TICK_S)


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` after the name, which may itself hold spaces and parentheses."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
