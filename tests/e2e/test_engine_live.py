"""The embedded engine with the real vLLM and the real model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint import build_checkpoint, packaged_artefact
from server.settings import Settings
from tests.conftest import Vllm

pytestmark = pytest.mark.live

# Starts an engine as the command does, says where it is once it answers, and waits to be killed.
OWNER = """
import sys, time
from pathlib import Path
from server.engine import EmbeddedEngine
from server.settings import Settings

engine = EmbeddedEngine.from_settings(Settings(data_dir=Path(sys.argv[1])))
upstream = engine.start(lambda progress: print(progress.phase, flush=True))
print("ready", upstream.base_url, flush=True)
time.sleep(600)
"""


def post(vllm: Vllm, path: str, body: dict[str, object], key: str | None = None) -> Any:
    request = urllib.request.Request(  # noqa: S310 - our own engine's URL
        vllm.base_url + path,
        data=json.dumps({"model": vllm.model} | body).encode(),
        headers={"authorization": f"Bearer {key or vllm.api_key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
        return json.loads(response.read())


def chat(vllm: Vllm, text: str) -> Any:
    messages = [{"role": "user", "content": text}]
    return post(vllm, "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 32})


def processes_of(data_dir: Path) -> dict[int, str]:
    """Return {pid: name} of the live processes below the guard whose log is in `data_dir`, the guard included."""
    parents, names, guards = {}, {}, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if state != "Z":
            parents[int(entry.name)], names[int(entry.name)] = int(parent), name
            if str(data_dir / "engine.log") in line:
                guards.add(int(entry.name))
    found = set(guards)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: names[pid] for pid in found}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_engine_is_healthy_and_serves_the_model(vllm: Vllm) -> None:
    assert vllm.get("/health") == b""
    assert json.loads(vllm.get("/v1/models"))["data"][0]["id"] == vllm.model
    assert vllm.running_requests() == 0


def test_the_converted_model_answers_sensibly_and_stops_by_itself(vllm: Vllm) -> None:
    # Without "Say:" the two likeliest first tokens are 0.1 nats apart, which another CPU rounds otherwise; with it
    # no token of the answer is nearer than 0.8.
    choice = chat(vllm, "Say: What is the capital of France?")["choices"][0]
    assert "Paris" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


def test_the_same_greedy_question_reuses_the_prefix_and_gives_the_same_answer(vllm: Vllm) -> None:
    question = "Name the four seasons of the year, in order, and say in one sentence what people do in each of them."
    first, second = chat(vllm, question), chat(vllm, question)
    assert first["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32


def test_a_request_without_the_engines_key_is_refused(vllm: Vllm) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        post(vllm, "/v1/completions", {"prompt": "Hello"}, key="another-key")


def test_the_checkpoint_is_not_built_a_second_time(vllm: Vllm) -> None:
    cache_dir = Settings().cache_dir
    build_checkpoint(cache_dir, artefact=packaged_artefact())
    started = time.perf_counter()
    build_checkpoint(cache_dir, artefact=packaged_artefact())
    assert time.perf_counter() - started < 0.5


def test_kill_9_of_the_owner_leaves_no_process_of_vllm(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        lines = iter(owner.stdout.readline, "")
        ready = next((line for line in lines if line.startswith("ready")), None)
        assert ready is not None
        # The guard, the API server, the engine core and its worker, at least.
        processes = processes_of(tmp_path)
        assert len(processes) >= 4, processes
        owner.kill()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(alive(pid) for pid in processes):
        time.sleep(0.05)
    assert {pid: name for pid, name in processes.items() if alive(pid)} == {}
