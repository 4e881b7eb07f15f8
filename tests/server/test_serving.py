"""`preamble serve` as a process: what it says, how it stops, what it leaves behind. The upstream is a small fake."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.serving_watch import Announcement, Watch

START_S = 60.0
STOP_S = 30.0
CHUNKS = 20
GAP_S = 0.1
MODEL = "tiny"
KEY = "the-key-of-the-upstream"


class Upstream(BaseHTTPRequestHandler):
    """Answers a chat at once, or streams it over a second."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._json({"data": [{"id": MODEL}]} if self.path == "/v1/models" else {"version": "0.32.0"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            self.send_error(404)
        elif body.get("stream"):
            self._stream()
        else:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "It works."}}
            self._json({"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]})

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the proxy may hang up, that is part of a test
            for number in range(CHUNKS):
                event = b"data: %d\n\n" % number
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                time.sleep(GAP_S)
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def upstream_at(port: int = 0) -> Iterator[str]:
    """Serve the fake upstream in a thread and give its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def upstream() -> Iterator[str]:
    with upstream_at() as url:
        yield url


class Served:
    """A `preamble serve` that runs, with its lines of output as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.said: list[str] = []
        threading.Thread(target=self._read_out, daemon=True).start()
        self._err = threading.Thread(target=self._read_err, daemon=True)
        self._err.start()

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)

    def line(self) -> str:
        """Return the next line of standard output."""
        line = self.lines.get(timeout=START_S)
        assert line is not None, f"it ended: {''.join(self.said)}"
        return line

    def ready(self) -> tuple[str, int]:
        """Wait until it is ready (started with --json); return host and port."""
        host, _, port = json.loads(self.line())["base_url"].removeprefix("http://").rpartition(":")
        return host, int(port)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Return the exit status once it has ended by itself."""
        status = self.process.wait(STOP_S)
        self._err.join(5)
        return status


@contextlib.contextmanager
def serving(data_dir: Path, *options: str, **environ: str) -> Iterator[Served]:
    """Start `preamble serve` on a free port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREAMBLE_")}
    environment |= {"PREAMBLE_" + name: value for name, value in environ.items()} | {"TMPDIR": str(data_dir.parent)}
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--data-dir", str(data_dir), *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Served(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def streamed_answer(address: tuple[str, int]) -> Iterator[http.client.HTTPResponse]:
    """Send a streamed chat and give the answer once its head is there."""
    body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection(*address, timeout=STOP_S)))
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        yield stack.enter_context(connection.getresponse())


def test_once_ready_it_prints_three_lines_of_python_that_work(tmp_path: Path, upstream: str) -> None:
    with serving(tmp_path / "data", "--upstream", upstream) as served:
        first = served.line()
        assert re.match(r"Preamble is ready at http://127\.0\.0\.1:\d+ \(Ctrl-C stops it\)", first)
        assert served.line() == ""
        program = [served.line() for _ in range(3)]
        ran = subprocess.run([sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (0, "It works.\n"), ran.stderr
        assert [served.line(), served.line()] == ["", "To watch it:"]
        assert re.match(r"  metrics +http://127\.0\.0\.1:\d+/metrics$", served.line())
        assert "--config.file=" in served.line()
        assert served.stop() == 0


@pytest.mark.parametrize(("workers", "number"), [("1", signal.SIGTERM), ("1", signal.SIGINT), ("2", signal.SIGTERM)])
def test_a_signal_lets_answers_in_flight_finish_and_leaves_nothing(
    tmp_path: Path, upstream: str, workers: str, number: int
) -> None:
    with serving(tmp_path / "data", "--upstream", upstream, "--json", "--workers", workers) as served:
        address = served.ready()
        children = children_of(served.process.pid)
        assert len(children) >= (0 if workers == "1" else 2)
        assert len(list(tmp_path.glob("preamble-metrics-*"))) == (0 if workers == "1" else 1)
        with streamed_answer(address) as answer:
            served.process.send_signal(number)
            assert answer.read().count(b"data: ") == CHUNKS
        assert served.ended() == 0
    assert not any(alive(child) for child in children)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_answer_that_takes_too_long_does_not_hold_up_the_end(tmp_path: Path, upstream: str) -> None:
    options = ("--upstream", upstream, "--json", "--shutdown-timeout-s", "0")
    with serving(tmp_path / "data", *options) as served, streamed_answer(served.ready()):
        started = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - started < CHUNKS * GAP_S


def test_workers_have_no_secret_in_their_arguments_and_end_when_their_supervisor_is_killed(
    tmp_path: Path, upstream: str
) -> None:
    secrets = {"UPSTREAM_API_KEY": KEY, "ADMIN_KEY": "the-key-of-the-admin", "SECRET": "the-secret-behind-salts"}
    with serving(tmp_path / "data", "--upstream", upstream, "--json", "--workers", "2", **secrets) as served:
        served.ready()
        children = children_of(served.process.pid)
        lines = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in [served.process.pid, *children])
        assert "spawn_main" in lines
        assert not [secret for secret in secrets.values() if secret in lines]
        served.process.kill()
        try:
            wait_for(lambda: not any(alive(child) for child in children), STOP_S)
        finally:
            for child in filter(alive, children):
                os.kill(child, signal.SIGKILL)


def test_with_its_upstream_down_it_says_so_and_is_ready_when_that_comes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with serving(tmp_path / "data", "--upstream", url, "--json") as served:
        wait_for(lambda: any("Not ready yet" in line for line in served.said), START_S)
        assert any(f"preamble doctor --upstream {url}" in line for line in served.said)
        with upstream_at(port):
            assert json.loads(served.line())["models"] == [MODEL]
            assert served.stop() == 0


def test_a_port_that_is_taken_stops_the_start(tmp_path: Path, upstream: str) -> None:
    port = upstream.rpartition(":")[2]
    with serving(tmp_path / "data", "--upstream", upstream, "--port", port) as served:
        assert served.ended() == 1
        [said] = served.said
        assert said.startswith(
            f"Cannot listen on 127.0.0.1 port {port} (Address already in use). Choose another --port"
        )


def test_it_warns_when_keys_are_asked_for_and_there_are_none(tmp_path: Path, upstream: str) -> None:
    with serving(tmp_path / "data", "--upstream", upstream, "--json", "--auth", "required") as served:
        served.ready()
        assert any("preamble keys create --admin" in line for line in served.said)
        assert served.stop() == 0


class Spoken(Announcement):
    """Counts what is announced instead of asking a proxy."""

    def __init__(self) -> None:
        self.readiness = False
        self.announced = 0

    def proxy_ready(self) -> bool:
        return self.readiness

    def ready(self) -> None:
        self.announced += 1


def test_a_proxy_is_announced_once_and_not_before_it_is_ready() -> None:
    spoken = Spoken()
    with Watch(spoken, engine_ended=lambda: False, stop=lambda: None) as watch:
        time.sleep(0.3)
        assert spoken.announced == 0
        spoken.readiness = True
        wait_for(lambda: spoken.announced)
        time.sleep(0.3)
    assert spoken.announced == 1
    assert not watch.engine_died


def test_an_engine_that_dies_stops_the_proxy() -> None:
    ended, stopped = threading.Event(), threading.Event()
    with Watch(Spoken(), engine_ended=ended.is_set, stop=stopped.set) as watch:
        time.sleep(0.3)
        assert not stopped.is_set()
        ended.set()
        wait_for(stopped.is_set)
    assert watch.engine_died
