"""The comparison runs from end to end against the real proxy, and leaves nothing behind.

What is asserted is that it measures; the ratios are for a quiet machine: `python -m loadtests.overhead`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from loadtests import report
from loadtests.comparison import Measurement, Mode, compare
from loadtests.cpu import descendants
from loadtests.generator import Result
from loadtests.overhead import Plan
from loadtests.rounds import INTERRUPTED, MISSED, rotated
from loadtests.targets import Target, TargetError, _interrupts_deferred, fake_upstream, nginx_binary, preamble

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


def has_nginx() -> bool:
    try:
        return bool(nginx_binary())
    except TargetError:
        return False


needs_nginx = pytest.mark.skipif(not has_nginx(), reason="nginx is not installed; `apt-get install nginx-light`")


def target(name: str) -> Target:
    return Target(name, 1, "http://127.0.0.1:1/", "http://127.0.0.1:1/")


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Target]:
    with fake_upstream(tmp_path, gap_s=0.002) as running:
        yield running


@needs_nginx
def test_a_small_run_measures_every_target_in_every_mode_and_misses_a_ratio_that_cannot_be_met() -> None:
    sizes = ["--rounds=1", "--requests=64", "--streams=8", "--rate=400", "--connections=8", "--gap-ms=2"]
    limits = ["--max-request-ratio=0.001", "--max-stream-ratio=1000"]
    command = [sys.executable, "-m", "loadtests.overhead", "--json", *sizes, *limits]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == MISSED, done.stderr
    said = json.loads(done.stdout)
    taken = {(m["target"], m["mode"]): m["result"] for m in said["measurements"]}
    assert set(taken) == {(name, mode) for name in ("nginx", "preamble", "direct") for mode in Mode}
    for (_, mode), result in taken.items():
        assert result["errors"] == {}
        assert result["requests"] == {"requests": 64, "streams": 8, "paced": 200}[mode]
        assert result["cpu_ms"] > 0
    assert [verdict["met"] for verdict in said["verdicts"]] == [False, True]
    assert said["environment"]["nginx"][0].isdigit()


@needs_nginx
def test_an_interrupted_run_stops_what_it_started() -> None:
    command = [sys.executable, "-m", "loadtests.overhead", "--rounds=50"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        started: tuple[int, ...] = ()
        while len(started) < 5 and time.monotonic() < deadline:  # itself, upstream, nginx and its worker, preamble
            time.sleep(0.05)
            started = descendants(process.pid)
        assert len(started) >= 5
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED
    assert b"interrupted" in notes
    # A load generator that was killed may be gone a moment later: Python waits 0.25 s for it after Ctrl-C.
    deadline = time.monotonic() + 10
    while left := [pid for pid in started if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_an_interrupt_during_the_start_of_a_process_waits_until_it_can_be_ended() -> None:
    started = []
    with pytest.raises(KeyboardInterrupt), _interrupts_deferred():  # noqa: PT012 -- the point is what is still done
        signal.raise_signal(signal.SIGINT)
        started.append("the process")
    assert started


def test_without_nginx_the_message_says_how_to_get_it() -> None:
    with pytest.raises(TargetError, match="apt-get install nginx"):
        nginx_binary("/nowhere")


def test_a_proxy_that_does_not_start_is_reported_with_what_it_said(tmp_path: Path) -> None:
    broken = Target("direct", os.getpid(), "http://key@127.0.0.1:1/v1/chat/completions", "")
    with (
        pytest.raises(TargetError, match=r"preamble ended with status 2.*\n.*upstream"),
        preamble(tmp_path, broken, access_log=False),
    ):
        pass


def test_locust_scenarios_run_without_a_failure(upstream: Target, tmp_path: Path) -> None:
    with preamble(tmp_path, upstream, access_log=False) as proxy:
        key = dict(proxy.headers)["Authorization"].removeprefix("Bearer ")
        host = proxy.requests_url.removesuffix("/v1/chat/completions")
        command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--host", host]
        command += ["--users=8", "--spawn-rate=8", "--run-time=4s", "--stop-timeout=5", "--only-summary"]
        command += [f"--api-keys={key},{key}", "--sampled-share=0.5", "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {"chat", "chat, streamed", "first token", "tokens per second", "edit constitution"} <= set(rows)
    assert {"chat, adaptive", "chat, adaptive, streamed"} & set(rows)
    assert all(row["num_failures"] == 0 for row in rows.values())
    # 63 gaps of 2 ms, whatever the noise: the clock runs to the end of the stream, not to its headers.
    assert rows["chat, streamed"]["min_response_time"] >= 126
    # About 500; a busy machine may deliver late and in bursts, but a wrong unit would be off by a thousand.
    assert 50 < rows["tokens per second"]["min_response_time"] < 50_000


def test_each_target_takes_every_place_in_turn() -> None:
    targets = [target("a"), target("b"), target("c")]
    orders = [[each.name for each in rotated(targets, number)] for number in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_the_table_shows_each_target_and_says_which_ratio_is_missed() -> None:
    def measured(name: str, mode: Mode, cpu_ms: float) -> Measurement:
        latency = {"p50": 1.0, "p99": 2.0}
        return Measurement(0, name, mode, Result(9, {}, 1.0, 9.0, latency, latency, 64.0, 0, cpu_ms, True))

    taken = [measured(name, mode, cpu) for name, cpu in (("nginx", 1.0), ("preamble", 3.0)) for mode in Mode]
    verdicts = [
        compare(taken, mode, target="preamble", baseline="nginx", allowed=allowed)
        for mode, allowed in ((Mode.REQUESTS, 4.0), (Mode.STREAMS, 2.0))
    ]
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123  # closed with the test
    where = report.Environment("cpu", 2, 4.0, "Linux", "CPython", "1.22", {"uvloop": "1"}, "abc", 0.1)
    with console.file:
        report.show(console, where, taken, verdicts, ["round 1: noise"])
    text = console.export_text()
    assert "CPU per request: preamble = 3.00 x nginx" in text
    assert "at most 4: met" in text
    assert "at most 2: missed" in text
    assert "doubtful: round 1: noise" in text


def test_the_paced_load_keeps_the_rate_and_the_streamed_one_its_count() -> None:
    plan = Plan(rounds=1, requests=10, streams=20, rate=600.0, connections=3)
    assert {"--requests=300", "--rate=600.0", "--connections=3"} <= set(plan.options(Mode.PACED))
    assert {"--requests=20", "--stream"} <= set(plan.options(Mode.STREAMS))
    assert "--requests=10" in plan.options(Mode.REQUESTS)
