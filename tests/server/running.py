"""The whole proxy in the test's own event loop, over real sockets, as `preamble serve` runs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.app import PreambleApp, create_app
from server.http_protocol import PreambleHttpProtocol
from server.settings import Settings

ADMIN_KEY = "admin-key-for-tests"


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy that serves: its address, and a client of it that sends the admin key."""

    app: PreambleApp
    port: int
    admin: httpx.AsyncClient

    @property
    def url(self) -> str:
        """The base URL, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    async def make_key(self, user: str, *, sub_users: bool = False) -> dict[str, str]:
        """Make an API key and return the headers that send it."""
        answer = await self.admin.post("/v1/keys", json={"user": user, "may_name_sub_users": sub_users})
        assert answer.status_code == 201, answer.text
        return {"authorization": f"Bearer {answer.json()['key']}"}

    async def metric(self, sample: str) -> float:
        """Return the value of a sample such as `preamble_requests_total{route="models",status="200"}`, else 0."""
        for line in (await self.admin.get("/metrics")).text.splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0


@contextlib.asynccontextmanager
async def running_proxy(
    upstream: str, data_dir: Path, *, http: type[HttpToolsProtocol] = PreambleHttpProtocol, **settings: object
) -> AsyncIterator[RunningProxy]:
    """Serve in front of `upstream` for as long as the context lasts; API keys are required unless `auth` says else."""
    values = {"auth": "required", "admin_key": ADMIN_KEY, "access_log": False, "log_level": "error", **settings}
    app = create_app(Settings.model_validate({"upstream": upstream, "data_dir": data_dir, **values}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app,
            loop="none",
            http=http,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            assert not task.done(), "the proxy did not start"
            await asyncio.sleep(0.005)
        port = listener.getsockname()[1]
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10) as admin:
            try:
                yield RunningProxy(app, port, admin)
            finally:
                server.should_exit = True
        await task
