"""CPU accounting agrees with what a process says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadtests.cpu import CpuTime, cpu_time, descendants

if TYPE_CHECKING:
    from collections.abc import Iterator

# On each line read, burns that many seconds of CPU in the process that the option names, and says how many it were.
BURNER = """
import os, subprocess, sys, time
def burn(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass
    return time.process_time() - began
if sys.argv[1] == "child":
    child = subprocess.Popen([sys.executable, "-c", sys.argv[2], "self", sys.argv[2]])
    sys.exit(child.wait())
print("ready", flush=True)
for line in sys.stdin:
    print(burn(float(line)), flush=True)
"""


@pytest.fixture(params=["self", "child"])
def burner(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BURNER, request.param, BURNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def test_cpu_time_is_what_the_process_and_its_children_burned(burner: subprocess.Popen[str]) -> None:
    assert burner.stdin is not None
    assert burner.stdout is not None
    before = cpu_time(burner.pid)
    burner.stdin.write("0.2\n")
    burner.stdin.flush()
    burned_s = float(burner.stdout.readline())
    used = cpu_time(burner.pid) - before
    assert used.exact_s == pytest.approx(burned_s, abs=0.01)
    assert used.ticks_s == pytest.approx(burned_s, abs=0.03)
    assert used.agrees()


def test_a_process_that_sleeps_uses_no_cpu(burner: subprocess.Popen[str]) -> None:
    before = cpu_time(burner.pid)
    assert (cpu_time(burner.pid) - before).exact_s < 0.005


def test_descendants_are_the_process_and_what_it_started(burner: subprocess.Popen[str]) -> None:
    assert descendants(burner.pid)[0] == burner.pid
    assert set(descendants(burner.pid)) < set(descendants(os.getpid()))


def test_accounts_that_differ_by_more_than_their_grain_do_not_agree() -> None:
    assert not CpuTime(exact_s=1.0, ticks_s=1.5).agrees()
    assert CpuTime(exact_s=1.0, ticks_s=1.03).agrees()


def test_a_process_that_does_not_exist_is_an_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    with pytest.raises(OSError, match=str(process.pid)):
        cpu_time(process.pid)
