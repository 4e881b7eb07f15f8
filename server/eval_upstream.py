"""The upstream of a command that samples: the one that the settings name, or the embedded engine while it works."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console

from server.engine import EmbeddedEngine
from server.self_evaluation_config import FILE
from server.settings import Settings
from server.terminal import shown_progress
from server.upstream import Timeouts, UpstreamClient


@contextlib.contextmanager
def upstream_for(settings: Settings, err: Console) -> Iterator[Settings]:
    """Give settings with an upstream: the one they name, or the embedded engine for as long as the context lasts."""
    if settings.upstream is not None:
        yield settings
        return
    with shown_progress(err) as progress:
        engine = EmbeddedEngine.from_settings(settings)
        upstream = engine.start(progress)
    try:
        key = SecretStr(upstream.api_key)
        started = {"upstream": upstream.base_url, "upstream_api_key": key, "model": None}
        beside = None if settings.model is None else Path(settings.model)
        if settings.self_evaluation is None and beside is not None and (beside / FILE).is_file():
            started["self_evaluation"] = beside  # a relative path, which `/v1/models` gives too, is ours to read here
        yield settings.model_copy(update=started)
    finally:
        engine.stop()


def client_of(settings: Settings, max_connections: int) -> UpstreamClient:
    """Return a client of the upstream of settings that `upstream_for` gave."""
    assert settings.upstream is not None  # noqa: S101 -- for the type checker: see `upstream_for`
    key = settings.upstream_api_key
    return UpstreamClient(
        settings.upstream,
        api_key=None if key is None else key.get_secret_value(),
        max_connections=max_connections,
        timeouts=Timeouts(
            settings.connect_timeout_s,
            settings.first_token_timeout_s,
            settings.stall_timeout_s,
            settings.total_timeout_s,
        ),
    )
