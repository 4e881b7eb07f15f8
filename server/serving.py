"""Runs the proxy: the embedded engine if one is needed, the worker processes, and a clean end for all of it.

Who stops whom: a signal reaches this process, uvicorn lets answers in flight finish, and only then the engine is
stopped. An engine that dies takes the proxy with it (`ServingError`, exit status 1): whatever supervises the proxy
restarts both from a state that is known, while a restart in here would hide the crash and keep requests waiting.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import uvicorn
from pydantic import SecretStr
from rich.console import Console
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from server.engine import EmbeddedEngine
from server.http_protocol import PreambleHttpProtocol
from server.interrupts import sigterm_interrupts
from server.logs import configure_logging
from server.self_evaluation_config import SelfEvaluationConfigError, read_config
from server.serving_watch import Announcement, Watch
from server.settings import Settings, SettingsError
from server.store import Store
from server.terminal import say, shown_progress

if TYPE_CHECKING:
    from starlette.types import ASGIApp

# As long as nginx's. Clients keep idle connections for some seconds; whoever closes first should be the client, because
# its next request may otherwise meet a connection that is just being closed.
_KEEP_ALIVE_S: Final = 75
_GC_THRESHOLD: Final = 50_000
_METRICS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class ServingError(Exception):
    """The proxy could not be started, or had to stop. The message says why and what to do about it."""


def serve(settings: Settings, *, out: Console, err: Console, as_json: bool = False) -> None:
    """Serve until a signal says stop; return when everything is gone.

    Prints to `out` how to use the proxy once it is ready, and to `err` what happens until then. Raises `ServingError`,
    `SettingsError`, `StoreUnavailable`, and `EngineError` from the start of the embedded engine.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(sigterm_interrupts())
        listener = stack.enter_context(_bound_socket(settings.host, settings.port))
        _check_store(settings, err)
        _check_self_evaluation(settings)
        configure_logging(settings.log_level, settings.log_format)
        engine = None
        if settings.upstream is None:
            engine = EmbeddedEngine.from_settings(settings)
            stack.callback(engine.stop)
            settings = _start(engine, settings, err)
        stack.enter_context(_metrics_directory(settings.workers))
        server = _workers(settings, listener)
        watch = Watch(
            Announcement(settings, listener.getsockname(), out, err, as_json=as_json),
            engine_ended=lambda: engine is not None and engine.exit_code() is not None,
            stop=server.stop,
        )
        with watch:
            server.run_until_stopped()
        if engine is not None and watch.engine_died:
            raise _engine_ended(engine)


def serve_engine(settings: Settings, *, out: Console, err: Console, as_json: bool = False) -> None:
    """Run only the embedded engine until a signal says stop, and print to `out` how a proxy can use it.

    Raises `EngineError` from its start, and `ServingError` when it ends by itself.
    """
    engine = EmbeddedEngine.from_settings(settings)
    with sigterm_interrupts(), contextlib.ExitStack() as stack:
        stack.callback(engine.stop)
        with shown_progress(err) as progress:
            upstream = engine.start(progress)
        if as_json:
            ready = {"base_url": upstream.base_url, "api_key": upstream.api_key, "models": [upstream.model]}
            say(out, json.dumps({"event": "ready", **ready}))
        else:
            say(out, f"vLLM serves {upstream.model} at {upstream.base_url} (Ctrl-C stops it). In front of it:\n")
            say(out, f"export PREAMBLE_UPSTREAM={upstream.base_url} PREAMBLE_UPSTREAM_API_KEY={upstream.api_key}")
            say(out, "preamble serve\n")
        with contextlib.suppress(KeyboardInterrupt):
            engine.wait()
            raise _engine_ended(engine)


class _Workers(Protocol):
    """One worker in this process, or several under a supervisor."""

    def run_until_stopped(self) -> None:
        """Serve until a signal or `stop`. Raises `ServingError` if it could not start."""

    def stop(self) -> None:
        """Let answers in flight finish and return from `run_until_stopped`; may be called from any thread."""


class _OneWorker:
    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        self._server = uvicorn.Server(config)
        self._listener = listener

    def run_until_stopped(self) -> None:
        try:
            # uvicorn sends itself the signal again when it has stopped, which arrives here as KeyboardInterrupt.
            with contextlib.suppress(KeyboardInterrupt):
                self._server.run([self._listener])
        except SystemExit as error:
            raise _failed_to_start() from error

    def stop(self) -> None:
        self._server.should_exit = True


class _ManyWorkers(Multiprocess):
    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config, [listener])

    def run_until_stopped(self) -> None:
        self.run()
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            raise _failed_to_start()

    def stop(self) -> None:
        self.should_exit.set()

    def keep_subprocess_alive(self) -> None:
        """Replace dead workers, and take what a dead one had in flight out of the sums in `/metrics`."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            _forget_metrics_of(pid)


def build_worker(settings: Settings, parent_pid: int | None = None) -> ASGIApp:
    """Return the application; called in each worker process. `parent_pid`: end when that process ends.

    The settings come from the supervisor through a pipe, so that no secret is in an argument list or the environment.
    """
    if parent_pid is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # it ended before the call
            os.kill(os.getpid(), signal.SIGTERM)
    # Not before this process is a worker: prometheus-client decides at its import whether there are several.
    from server.app import create_app  # noqa: PLC0415

    app = create_app(settings)
    # What is in memory now stays: otherwise every full collection walks through all imported modules again. And what
    # requests leave behind is freed by reference counts, so looking for cycles at every 700th object finds nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])
    return app


def _workers(settings: Settings, listener: socket.socket) -> _Workers:
    many = settings.workers > 1
    config = uvicorn.Config(
        partial(build_worker, settings, os.getpid() if many else None),
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http=PreambleHttpProtocol,
        ws="none",
        lifespan="on",
        # We have logs of our own, and nothing of ours asks for the client's address.
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s),
    )
    return _ManyWorkers(config, listener) if many else _OneWorker(config, listener)


def _start(engine: EmbeddedEngine, settings: Settings, err: Console) -> Settings:
    with shown_progress(err) as progress:
        upstream = engine.start(progress)
    return settings.model_copy(update={"upstream": upstream.base_url, "upstream_api_key": SecretStr(upstream.api_key)})


def _check_store(settings: Settings, err: Console) -> None:
    """Create or migrate the store before anything is started, and warn when nobody could use the proxy."""
    with Store.open(settings.store_url) as store:
        if settings.auth_required and settings.admin_key is None and not store.keys(live_only=True):
            say(
                err,
                f"Warning: {settings.host} asks for API keys and there are none, so every request will be refused. "
                "Create one: preamble keys create --admin",
                style="yellow",
            )


def _check_self_evaluation(settings: Settings) -> None:
    """Read the file that is set, before anything is started: each worker would fail on it."""
    if settings.self_evaluation is not None:
        try:
            read_config(settings.self_evaluation)
        except SelfEvaluationConfigError as error:
            raise SettingsError(f"self_evaluation: {error}") from error


@contextlib.contextmanager
def _bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that has its address and does not listen yet: before the slow start, because it can fail."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ServingError(
            f"Cannot listen on {host} port {port} ({error.strerror}). Choose another --port (0 takes a free one) or "
            "--host, or stop what uses it."
        ) from error
    with listener:
        yield listener


@contextlib.contextmanager
def _metrics_directory(workers: int) -> Iterator[None]:
    """Give several workers a place to add up their metrics; see `server/metrics.py`."""
    before = os.environ.pop(_METRICS_DIR, None)  # one that was there belongs to another program
    directory = tempfile.mkdtemp(prefix="preamble-metrics-") if workers > 1 else None
    if directory is not None:
        os.environ[_METRICS_DIR] = directory
    try:
        yield
    finally:
        if directory is not None:
            del os.environ[_METRICS_DIR]
            shutil.rmtree(directory, ignore_errors=True)
        if before is not None:
            os.environ[_METRICS_DIR] = before


def _forget_metrics_of(pid: int | None) -> None:
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 -- not before its directory is set

    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _failed_to_start() -> ServingError:
    return ServingError("The proxy could not start; the log above says why. `preamble doctor` checks what it needs.")


def _engine_ended(engine: EmbeddedEngine) -> ServingError:
    return ServingError(
        "vLLM ended by itself, so everything stopped; start it again. "
        f"Log: {engine.log_path}, which ends:\n{engine.log_tail()}"
    )
