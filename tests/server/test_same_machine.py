"""A proxy that asks for no key answers programs on this machine and no web pages."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from loadtests.fake_upstream import FakeUpstream
from server.errors import Forbidden
from server.same_machine import check_same_machine
from tests.server.running import running_proxy


@pytest.mark.parametrize(
    "host", [b"127.0.0.1:8080", b"localhost", b"LOCALHOST:1", b"[::1]:80", b"127.9.9.9", b"a.localhost"]
)
def test_loopback_names_pass(host: bytes) -> None:
    check_same_machine([(b"host", host), (b"origin", b"http://" + host)])


@pytest.mark.parametrize(
    "host", [b"evil.example", b"127.0.0.1.evil.example:80", b"10.0.0.1", b"", b"[", b"localhost.evil", b"\xff"]
)
def test_other_hosts_are_refused(host: bytes) -> None:
    with pytest.raises(Forbidden):
        check_same_machine([(b"host", host)])


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"", b"file://"])
def test_other_origins_are_refused(origin: bytes) -> None:
    with pytest.raises(Forbidden):
        check_same_machine([(b"host", b"localhost"), (b"origin", origin)])


@pytest.mark.parametrize("path", ["/v1/models", "/v1/keys", "/v1/constitution"])
async def test_all_routes_under_v1_check_it_exactly_when_no_key_is_asked_for(tmp_path: Path, path: str) -> None:
    page = {"origin": "https://evil.example"}
    async with FakeUpstream() as upstream:
        async with (
            running_proxy(upstream.url, tmp_path, auth="off") as proxy,
            httpx.AsyncClient(base_url=proxy.url) as client,
        ):
            refused = await client.get(path, headers=page)
            assert refused.status_code == 403
            assert refused.json()["error"]["param"] == "origin"
            assert (await client.get("/health", headers=page)).status_code == 200
        async with running_proxy(upstream.url, tmp_path) as proxy:
            assert (await proxy.admin.get(path, headers=page)).status_code != 403
