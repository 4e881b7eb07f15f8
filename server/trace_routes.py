"""`GET /v1/traces/{response id}`: what was drawn, pruned and scored for a sampled answer, for a while after it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.concurrency import run_in_threadpool

from server.caller_headers import IdentifyCaller, caller_of, caller_parameters
from server.errors import NotFound
from server.traces import TraceFiles


def build_router(*, traces: TraceFiles, identify: IdentifyCaller) -> APIRouter:
    """Return the route. A trace is shown to whose request it was, and to admins; to others it is not there."""
    router = APIRouter(tags=["Adaptive best-of-N"], dependencies=caller_parameters())

    @router.get("/v1/traces/{response_id}", summary="The candidate tree behind an answer")
    async def trace(
        request: Request, response_id: Annotated[str, Path(description="The `id` of the answer.", max_length=256)]
    ) -> dict[str, Any]:
        """Answer every candidate with its seed, temperature, scores over tokens, fate and text, and every decision."""
        identity = await caller_of(request, identify)
        found = await run_in_threadpool(traces.get, response_id)
        if found is None or not identity.may_act_for(found.user):
            raise NotFound(
                "There is no such trace. Traces are kept for a while only, and only of sampled chat completions.",
                code="trace_not_found",
            )
        return found.trace

    return router
