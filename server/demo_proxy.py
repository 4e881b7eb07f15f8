"""The proxy that the demo talks to: `preamble serve` in a process of its own, as a user would start it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from server.checkpoint import Progress
from server.settings import PREFIX, LoadedSettings, Settings
from server.settings_text import render_settings

# What `preamble serve` may take to let answers finish and to stop vLLM, with room to spare.
_STOP_S: Final = 30.0
_REPORT_S: Final = 0.5
_LINES_KEPT: Final = 40
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class DemoError(Exception):
    """The demo could not go on. The message says why."""


@contextlib.contextmanager
def started_proxy(settings: Settings) -> Iterator[DemoProxy]:
    """Start `preamble serve` with an empty store; at the end stop it and remove what it wrote.

    Of `settings` the upstream, the engine and the cache directory count.
    """
    directory = Path(tempfile.mkdtemp(prefix="preamble-demo-"))
    try:
        process = _spawn(settings, directory)
        try:
            yield DemoProxy(process)
        finally:
            _stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class DemoProxy:
    """A proxy that is starting."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._announced: queue.Queue[str] = queue.Queue()
        self._said: deque[str] = deque(maxlen=_LINES_KEPT)

    def await_ready(self, progress: Callable[[Progress], None]) -> str:
        """Return the base URL when the proxy says that it is ready, passing on what it says until then.

        Raises `DemoError` with its last words when it ends instead.
        """
        assert self._process.stdout is not None  # noqa: S101 -- for the type checker: PIPE in _spawn
        assert self._process.stderr is not None  # noqa: S101 -- the same
        listening = threading.Thread(target=_read, args=(self._process.stderr, self._said.append), daemon=True)
        listening.start()
        threading.Thread(target=_read, args=(self._process.stdout, self._announced.put), daemon=True).start()
        started = time.monotonic()
        while True:
            try:
                return str(json.loads(self._announced.get(timeout=_REPORT_S))["base_url"])
            except queue.Empty:
                if self._process.poll() is not None:
                    listening.join(1)
                    raise DemoError(
                        f"`preamble serve` ended with status {self._process.returncode}:\n" + "\n".join(self._said)
                    ) from None
            phase = next((line for line in reversed(self._said) if not line.startswith("{")), "starting the proxy")
            progress(Progress(phase, time.monotonic() - started))


def _spawn(settings: Settings, directory: Path) -> subprocess.Popen[str]:
    """Start the proxy with a configuration file of its own, so that nothing else on this machine changes it."""
    own = Settings(
        port=0,
        upstream=settings.upstream,
        system_role=settings.system_role,
        model=settings.model,
        embedded_self_evaluation=settings.embedded_self_evaluation,
        engine_args=settings.engine_args,
        engine_start_timeout_s=settings.engine_start_timeout_s,
        cache_dir=settings.cache_dir.absolute(),
        data_dir=directory,
        shutdown_timeout_s=5,
        log_level="warning",
        log_format="json",
        access_log=False,
    )
    config = directory / "demo.toml"
    config.write_text(render_settings(LoadedSettings(own, {})))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    if settings.upstream is not None and settings.upstream_api_key is not None:
        environment[PREFIX + "UPSTREAM_API_KEY"] = settings.upstream_api_key.get_secret_value()
    return subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--json", "--config", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Ctrl-C on the terminal reaches the demo alone, which then stops the proxy.
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 -- no thread of ours runs yet, so it is safe
    )


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _read(stream: IO[str], take: Callable[[str], object]) -> None:
    """Take the lines of a stream to its end, so that whoever writes it never has to wait."""
    for line in stream:
        take(line.rstrip("\n"))


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    except KeyboardInterrupt:
        # Asked again: no more patience. The engine's guard ends vLLM when the proxy is gone.
        process.kill()
        process.wait()
        raise
