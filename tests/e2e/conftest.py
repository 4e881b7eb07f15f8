"""One proxy in front of the session's vLLM, for every test that does not need one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Vllm
from tests.e2e.running import Preamble, User


@pytest.fixture(scope="session")
def preamble(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preamble]:
    """Return a proxy that asks for API keys. At the end nothing unexpected may have been logged."""
    proxy = Preamble(vllm.base_url, tmp_path_factory.mktemp("preamble"), upstream_api_key=vllm.api_key)
    with proxy:
        yield proxy
    assert proxy.process.returncode == 0
    assert "Traceback" not in proxy.log()
    assert "request_failed" not in proxy.log()


@pytest.fixture
def user(preamble: Preamble) -> User:
    """Return a user of a tenant of their own, without a constitution."""
    return preamble.user()
