"""Where figures were taken: the machine and the code, for reports."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from server import __version__


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine and this code.

    gpus: names, as NVIDIA's driver gives them. commit: None outside of a git tree; it ends in `+` when files differ
    from it.
    """

    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]
    system: str
    python: str
    preamble: str
    commit: str | None


def this_machine() -> Machine:
    """Return what can be found out in a moment."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages / 2**30, 1),
        gpus=tuple(_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()),
        system=f"{platform.system()} {platform.release().partition('-')[0]}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        preamble=__version__,
        commit=_commit(Path(__file__).parent),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine() or "unknown")


def _commit(directory: Path) -> str | None:
    commit = _output("git", "-C", str(directory), "rev-parse", "--short=12", "HEAD")
    if not commit or not _output("git", "-C", str(directory), "ls-files", Path(__file__).name):
        return None  # no git tree, or another project's, in which this package is merely installed
    changed = _output("git", "-C", str(directory), "status", "--porcelain", "--untracked-files=no")
    return commit + ("+" if changed else "")


def _output(program: str, *arguments: str) -> str:
    """Return what a program prints, nothing if it is not there or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
