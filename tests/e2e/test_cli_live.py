"""The command `preamble` with a real vLLM: what an operator sees, and what is left when it has ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.checkpoint import packaged_artefact
from tests.conftest import Vllm

pytestmark = pytest.mark.live

START_S = 240.0
STOP_S = 60.0


@contextlib.contextmanager
def preamble(tmp_path: Path, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command that puts its temporary files into `tmp_path`; nothing of it may survive the context."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREAMBLE_")}
    environment |= {"PREAMBLE_" + name: value for name, value in environ.items()} | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "server", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(tmp_path: Path, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run a command to its end; return exit status, standard output and standard error."""
    with preamble(tmp_path, *arguments, **environ) as process:
        out, err = process.communicate(timeout=START_S)
        return process.returncode, out, err


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for what a command started with --json says when it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended: {process.communicate()}"
    said: dict[str, Any] = json.loads(line)
    return said


def descendants(pid: int) -> dict[int, str]:
    """Return {pid: command line} of all processes below `pid`."""
    found = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            found |= descendants(int(child))
    return found


def assert_gone(pids: dict[int, str]) -> None:
    """Assert that processes have ended or are ending."""
    deadline = time.monotonic() + STOP_S
    while left := {pid: line for pid, line in pids.items() if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def environment_of(vllm: Vllm) -> dict[str, str]:
    return {"UPSTREAM": vllm.base_url, "UPSTREAM_API_KEY": vllm.api_key}


def test_doctor_finds_nothing_wrong_with_our_own_engine(vllm: Vllm, tmp_path: Path) -> None:
    status, out, _ = run(tmp_path, "doctor", "--json", "--data-dir", str(tmp_path / "data"), **environment_of(vllm))
    report = json.loads(out)
    checks = {check["name"]: check for check in report["checks"]}
    assert (status, report["ok"]) == (0, True)
    assert {check["status"] for check in checks.values()} == {"ok"}, checks
    assert vllm.model in checks["model"]["message"]
    assert re.search(r"reused [1-9]\d* of \d+ tokens", checks["cache hit"]["message"])
    trained = packaged_artefact() is not None and not os.environ.get("TEST_UPSTREAM_URL")
    in_force = (
        r"By /.*\. Its question is \d+ trained tokens\. Its scores are calibrated" if trained else "literal question"
    )
    assert re.search(in_force, checks["self-evaluation"]["message"])
    assert not (tmp_path / "data").exists()


def test_doctor_says_so_when_the_upstream_refuses_the_key(vllm: Vllm, tmp_path: Path) -> None:
    if not vllm.api_key:
        pytest.skip("this upstream asks for no key")
    environ = environment_of(vllm) | {"UPSTREAM_API_KEY": "wrong"}
    status, out, _ = run(tmp_path, "doctor", "--data-dir", str(tmp_path / "data"), **environ)
    assert status == 1
    assert re.search(r"failed +model +It refuses our API key\.\n.*PREAMBLE_UPSTREAM_API_KEY", out)


def assert_demo_shown(out: str) -> None:
    """Assert that the demo has shown each of its steps with what really happened."""
    assert "SmolLM2" in out
    plain, followed = re.search(r"(\d+) words instead of (\d+)\.", out).group(2, 1)  # type: ignore[union-attr]
    assert int(followed) < int(plain) / 2
    assert re.search(r"\d+ pieces, the same text\.", out)
    assert "1. Answer in one short sentence." in out
    assert re.search(r"\d+ tokens by the model's own tokenizer", out)
    assert "the same answer as before the constitution" in out
    assert re.search(r"ada, again +(\d+) +[1-9]\d*", out)
    assert re.search(r"grace, first +\d+ +0", out)
    assert re.search(r"preamble_requests_total +chat_completions 200 +0 +19", out)
    best_of_4, _, adaptive = out.partition("As many as are needed")
    assert len(re.findall(r"^ ?[0-3] +0\.\d{3} .* (?:returned|finished|pruned) ", best_of_4, re.MULTILINE)) == 4
    assert re.search(r"[0-3] of 4 stopped early\.\n\d+ tokens generated, \d+ computed for scores\.", out)
    assert re.search(r"That is \d+ (?:fewer|more) than all four to their end", best_of_4)
    assert len(re.findall(r"^ ?\S+ +[1-8] +(?:passes|fails) +(?:passes|fails) +\d+ *$", adaptive, re.MULTILINE)) == 11
    returned, first = re.search(r"(\d+) of 11 pass; (\d+) would with one sample\.", adaptive).groups()  # type: ignore[union-attr]
    if packaged_artefact() is not None:
        assert "Trained self-evaluation is in force, calibrated." in best_of_4
        assert re.search(r"That is \d+ fewer than", best_of_4)
        assert int(returned) >= int(first)
        assert re.search(r"scoring included: \d+ fewer than best of eight", adaptive)


def test_the_demo_walks_through_the_product_in_front_of_a_running_vllm(vllm: Vllm, tmp_path: Path) -> None:
    status, out, err = run(tmp_path, "demo", **environment_of(vllm))
    assert status == 0, err + out
    assert_demo_shown(out)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_fails_with_the_reason_when_the_upstream_does(vllm: Vllm, tmp_path: Path) -> None:
    if not vllm.api_key:
        pytest.skip("this upstream asks for no key")
    status, _, err = run(tmp_path, "demo", **environment_of(vllm) | {"UPSTREAM_API_KEY": "wrong"})
    assert status == 1
    assert "401" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_demo_starts_and_stops_an_engine_of_its_own(tmp_path: Path) -> None:
    with preamble(tmp_path, "demo") as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "ready at" in line:
                break
        below = descendants(process.pid)
        assert sum("api_server" in line for line in below.values()) >= 1, "".join(said)
        out, err = process.communicate(timeout=START_S)
    assert process.returncode == 0, err
    assert any(line.startswith("starting vLLM: ") for line in said)
    assert_demo_shown(out)
    assert_gone(below)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, number: int) -> None:
    with preamble(tmp_path, "demo") as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("starting vLLM: "):
            assert process.poll() is None
        below = descendants(process.pid)
        assert below
        process.send_signal(number)
        assert process.wait(STOP_S) == 130
    assert_gone(below)
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_whose_engine_dies_ends_with_the_reason(tmp_path: Path) -> None:
    arguments = ("serve", "--json", "--port", "0", "--data-dir", str(tmp_path / "data"))
    with preamble(tmp_path, *arguments) as process:
        base_url = ready(process)["base_url"]
        assert httpx.get(f"{base_url}/ready").json()["ready"] is True
        below = descendants(process.pid)
        servers = [pid for pid, line in below.items() if "api_server" in line and "engine_guard" not in line]
        os.kill(servers[0], signal.SIGKILL)
        _, err = process.communicate(timeout=STOP_S)
    assert process.returncode == 1
    assert "vLLM ended by itself" in err
    assert str(tmp_path / "data" / "engine.log") in err
    assert_gone(below)


def test_the_engine_alone_says_how_a_proxy_can_use_it(tmp_path: Path) -> None:
    arguments = ("engine", "--json", "--data-dir", str(tmp_path / "data"))
    with preamble(tmp_path, *arguments) as process:
        said = ready(process)
        below = descendants(process.pid)
        headers = {"authorization": f"Bearer {said['api_key']}"}
        models = httpx.get(f"{said['base_url']}/v1/models", headers=headers).json()
        assert [model["id"] for model in models["data"]] == said["models"]
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_S) == 0
    assert_gone(below)
