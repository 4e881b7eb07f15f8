"""Fixtures that every test may use: one real vLLM for the whole session."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest

from server.engine import EmbeddedEngine, Progress
from server.settings import Settings

# How long an example takes says more of the machine than of the code: pytest-timeout bounds a test as a whole.
hypothesis.settings.register_profile("preamble", deadline=None)
hypothesis.settings.load_profile("preamble")


def pytest_configure() -> None:
    """Let what tests start be interrupted, also where the tests themselves run in the background of a shell.

    Such a shell has SIGINT ignored, and what is ignored stays so in every process that is started.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True, slots=True)
class Vllm:
    """A real vLLM that runs: its base URL (without /v1), its API key, the model it serves."""

    base_url: str
    api_key: str
    model: str

    def get(self, path: str) -> bytes:
        """Return the body of `GET path`."""
        request = urllib.request.Request(  # noqa: S310 - our own engine's URL
            self.base_url + path, headers={"authorization": f"Bearer {self.api_key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - the same
            body: bytes = response.read()
            return body

    def metric(self, name: str) -> float:
        """Return the sum of the samples of vLLM's metric `name` over all labels, e.g. `vllm:prompt_tokens_total`."""
        lines = self.get("/metrics").decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def running_requests(self) -> int:
        """Return how many requests the engine holds, generating or queued, by vLLM's own count."""
        return int(self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting"))


@pytest.fixture(scope="session")
def vllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """Return the session's vLLM, started on first use. Tests that ask for it carry the mark `live`.

    A developer who keeps one running sets TEST_UPSTREAM_URL (and TEST_UPSTREAM_API_KEY), and nothing is started.
    """
    url = os.environ.get("TEST_UPSTREAM_URL", "").rstrip("/").removesuffix("/v1")
    if url:
        running = Vllm(url, os.environ.get("TEST_UPSTREAM_API_KEY", ""), model="")
        model = json.loads(running.get("/v1/models"))["data"][0]["id"]
        yield Vllm(running.base_url, running.api_key, model)
        return
    engine = EmbeddedEngine.from_settings(Settings(data_dir=tmp_path_factory.mktemp("engine")))
    with engine.running(_PhasesOnTerminal(request.config)) as upstream:
        yield Vllm(upstream.base_url, upstream.api_key, upstream.model)


class _PhasesOnTerminal:
    """Writes each phase of the start past pytest's capture: it takes most of a minute, and somebody is waiting."""

    def __init__(self, config: pytest.Config) -> None:
        self._capture = config.pluginmanager.get_plugin("capturemanager")
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        if self._capture is not None and progress.phase != self._phase:
            self._phase = progress.phase
            with self._capture.global_and_fixture_disabled():
                print(f"\n[{progress.elapsed_s:5.1f} s] {progress.phase}", end="", flush=True)  # noqa: T201 - as said
