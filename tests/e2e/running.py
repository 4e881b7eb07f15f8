"""The real proxy in a process of its own, started as an operator starts it, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import http
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from openai import OpenAI

ROOT: Final = Path(__file__).parents[2]
ADMIN_KEY: Final = "an-admin-key-for-the-tests"
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 30.0
_REQUEST_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class User:
    """A user with an API key. `http` and `openai` carry the key; neither tries anything a second time."""

    name: str
    key: str
    http: httpx.Client
    openai: OpenAI

    def put_constitution(self, *principles: str) -> str:
        """Register a constitution with these principles and return its tag, `<id>@<version>`."""
        answer = self.http.put("/v1/constitution", json={"principles": list(principles)})
        assert answer.status_code in {200, 201}, answer.text
        version = answer.json()
        return f"{version['id']}@{version['version']}"


@dataclass(slots=True)
class Preamble:
    """`preamble serve` with API keys required, in front of `upstream`. A context manager: the process lives inside it.

    `settings` become `PREAMBLE_*` variables. With `port` 0 it takes a free one and is awaited until it says that it is
    ready; with another port only until it listens, because it may be meant to start without its upstream.
    """

    upstream: str
    data_dir: Path
    upstream_api_key: str = ""
    port: int = 0
    workers: int = 1
    settings: dict[str, object] = field(default_factory=dict)
    base_url: str = ""
    _process: subprocess.Popen[str] | None = None
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._open.close()
        try:
            self.stop()
        finally:
            if error is not None:
                sys.stderr.write(f"--- log of {self.base_url}\n{self.log()}\n")

    def start(self) -> None:
        """Start the process; also again, after `kill` or `stop`, on the same data."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREAMBLE_")}
        environment |= {f"PREAMBLE_{name.upper()}": str(value) for name, value in self.settings.items()}
        environment |= {"PREAMBLE_ADMIN_KEY": ADMIN_KEY, "PREAMBLE_UPSTREAM_API_KEY": self.upstream_api_key}
        config = self.data_dir / "preamble.toml"  # empty, and named, so that nobody's own is read
        config.touch()
        command = [sys.executable, "-m", "server", "serve", "--json", "--config", str(config)]
        command += ["--upstream", self.upstream, "--port", str(self.port), "--auth", "required"]
        command += ["--workers", str(self.workers), "--data-dir", str(self.data_dir)]
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        if self.port:
            self.base_url = f"http://127.0.0.1:{self.port}"
            until(self._listens, timeout_s=_START_TIMEOUT_S, what=f"{self.base_url} listens")
            return
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the proxy did not start:\n{self.log()}"
        self.base_url = json.loads(line)["base_url"]

    def stop(self) -> int:
        """End the process with SIGTERM, unless it has ended; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return the exit status once the process has ended by itself; it is killed if it takes too long."""
        process = self.process
        try:
            return process.wait(_STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self.process.kill()
        self.wait()

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process of `preamble serve`: the only worker, or the supervisor of several."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def log_path(self) -> Path:
        """Where its standard error goes."""
        return self.data_dir / "proxy.log"

    def log(self) -> str:
        """Return everything it has logged."""
        return self.log_path.read_text()

    def worker_pids(self) -> list[int]:
        """Return the process ids of its worker processes; only with several."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        # multiprocessing also starts a resource tracker, which is no worker.
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def http(self, key: str = ADMIN_KEY) -> httpx.Client:
        """Return a client that sends `key`; closed with the proxy."""
        headers = {"authorization": f"Bearer {key}"}
        return self._open.enter_context(
            httpx.Client(base_url=self.base_url, headers=headers, timeout=_REQUEST_TIMEOUT_S)
        )

    def user(self, name: str | None = None, **fields: object) -> User:
        """Return a user with a new key; a new tenant unless `name` says otherwise. `fields` go into the key."""
        name = name or f"tenant-{secrets.token_hex(4)}"
        with httpx.Client(base_url=self.base_url, headers={"authorization": f"Bearer {ADMIN_KEY}"}) as admin:
            answer = admin.post("/v1/keys", json={"user": name} | fields)
        assert answer.status_code == http.HTTPStatus.CREATED, answer.text
        key = answer.json()["key"]
        openai = OpenAI(base_url=f"{self.base_url}/v1", api_key=key, max_retries=0, timeout=_REQUEST_TIMEOUT_S)
        return User(name, key, self.http(key), self._open.enter_context(openai))

    def metric(self, sample: str) -> float:
        """Return the value of a sample of `/metrics`, named as it is there: `a_total{route="models"}`; else 0."""
        text = httpx.get(f"{self.base_url}/metrics").text
        return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(sample + " ")), 0.0)

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"the proxy ended:\n{self.log()}"
        try:
            return httpx.get(f"{self.base_url}/health").status_code == http.HTTPStatus.OK
        except httpx.TransportError:
            return False


@dataclass(slots=True)
class FakeVllm:
    """`python -m loadtests.fake_upstream` on a port of its own, to be killed and started again."""

    gap_ms: float = 5.0
    port: int = field(default_factory=lambda: free_port())  # noqa: PLW0108 - it is defined further down
    _process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where it listens while it runs."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        options = ["--port", str(self.port), "--gap-ms", str(self.gap_ms)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.fake_upstream", *options], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith(b"fake upstream on")

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def until(condition: Callable[[], Any], *, timeout_s: float, what: str) -> float:
    """Return how many seconds it took for `condition()` to become true; fail the test after `timeout_s`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)
    return time.monotonic() - started


def sse_events(body: bytes) -> list[Any]:
    """Return the decoded `data:` lines of an event stream; `[DONE]` stays text."""
    lines = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
