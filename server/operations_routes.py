"""Routes for whoever operates the proxy: is it alive, may it get traffic, what does it count."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from server import __version__
from server.metrics import CONTENT_TYPE, Metrics


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class Readiness(BaseModel):
    """Whether requests can be answered now, and if not, what is missing."""

    ready: bool
    upstream: Literal["ok", "unreachable"]
    store: Literal["ok", "unavailable"]


def build_router(
    *,
    metrics: Metrics,
    before_scrape: Callable[[], None],
    upstream_ready: Callable[[], Awaitable[bool]],
    store_ready: Callable[[], Awaitable[bool]],
) -> APIRouter:
    """Return `/health`, `/ready` and `/metrics`. None asks for a key: keep them on the operator's network."""
    router = APIRouter(tags=["operations"])

    @router.get("/health", summary="Is the process alive?")
    async def health() -> Health:
        """Answer 200 for as long as the process can answer at all; touches neither the store nor the upstream."""
        return Health()

    @router.get(
        "/ready",
        summary="May traffic be sent here?",
        responses={503: {"model": Readiness, "description": "Not now; the body says what is missing."}},
    )
    async def ready(response: Response) -> Readiness:
        """Answer 200 when the upstream and the store can be used, else 503."""
        upstream, store = await upstream_ready(), await store_ready()
        if not (upstream and store):
            response.status_code = 503
        return Readiness(
            ready=upstream and store,
            upstream="ok" if upstream else "unreachable",
            store="ok" if store else "unavailable",
        )

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def exposition() -> Response:
        """Answer in Prometheus' text format, of all workers together."""
        before_scrape()
        return Response(await run_in_threadpool(metrics.render), media_type=CONTENT_TYPE)

    return router
