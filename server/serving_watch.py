"""Watches a proxy from beside: says when it is really ready and how to use it, notices when the engine has died."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

from rich.console import Console

from server.probe import probing_client, served_models
from server.settings import Settings
from server.terminal import say
from server.watching import how_to_watch

_STARTING_POLL_S: Final = 0.1
_RUNNING_POLL_S: Final = 0.5
_SLOW_START_S: Final = 5.0
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- compared with, not bound to


class Announcement:
    """What the operator is told about a proxy at `address`, as `getsockname` gives it."""

    def __init__(
        self, settings: Settings, address: tuple[Any, ...], out: Console, err: Console, *, as_json: bool
    ) -> None:
        host, self._port = address[:2]
        self._host = _WILDCARDS.get(host, host)
        self._settings = settings
        self._out = out
        self._err = err
        self._as_json = as_json

    @property
    def base_url(self) -> str:
        """The proxy's base URL, as this machine can use it."""
        return f"http://[{self._host}]:{self._port}" if ":" in self._host else f"http://{self._host}:{self._port}"

    def proxy_ready(self) -> bool:
        """Return whether the proxy says that it can answer requests now."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=2)
        try:
            connection.request("GET", "/ready", headers={"connection": "close"})
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def still_waiting(self) -> None:
        """Say that it takes long, and where to look."""
        say(
            self._err,
            f"Not ready yet: {self.base_url}/ready says what is missing. The upstream is {self._settings.upstream}; "
            f"`preamble doctor --upstream {self._settings.upstream}` says more.",
            style="yellow",
        )

    def ready(self) -> None:
        """Print the base URL, three lines of Python that use it, and how to watch it."""
        names = asyncio.run(_model_names(self._settings))
        model = names[0] if names else "MODEL"
        if self._as_json:
            say(self._out, json.dumps({"event": "ready", "base_url": self.base_url, "models": names}))
            return
        key = "YOUR-KEY" if self._settings.auth_required else "none"
        ask = f'model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]'
        say(self._out, f"Preamble is ready at {self.base_url} (Ctrl-C stops it). To use it from Python:\n")
        say(self._out, "from openai import OpenAI")
        say(self._out, f'client = OpenAI(base_url="{self.base_url}/v1", api_key="{key}")')
        say(self._out, f"print(client.chat.completions.create({ask}).choices[0].message.content)\n")
        for line in how_to_watch(self.base_url, self._settings.upstream):
            say(self._out, line)


class Watch:
    """A thread beside the server: announces it once, and calls `stop` when `engine_ended()` turns true."""

    def __init__(
        self, announcement: Announcement, *, engine_ended: Callable[[], bool], stop: Callable[[], None]
    ) -> None:
        self.engine_died = False
        self._announcement = announcement
        self._engine_ended = engine_ended
        self._stop_server = stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        announced = complained = False
        started = time.monotonic()
        while not self._over.wait(_RUNNING_POLL_S if announced else _STARTING_POLL_S):
            if self._engine_ended():
                self.engine_died = True
                self._stop_server()
                return
            if announced:
                continue
            if self._announcement.proxy_ready():
                self._announcement.ready()
                announced = True
            elif not complained and time.monotonic() - started > _SLOW_START_S:
                self._announcement.still_waiting()
                complained = True


async def _model_names(settings: Settings) -> list[str]:
    """Ask the upstream: the proxy itself may want a key that we do not have."""
    async with probing_client(settings) as client:
        return [model.name for model in await served_models(client)]
