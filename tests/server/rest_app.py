"""The REST routes on a real store, in an application of their own: what their tests talk to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.testclient import TestClient

from adaptive.policy import Mode
from constitutions.compose import Placement
from constitutions.constitution import Limits
from server import constitution_routes, key_routes, policy_routes
from server.callers import Callers
from server.directory import Directory
from server.error_routes import install_error_shape
from server.errors import UpstreamUnavailable
from server.identity import Identifier
from server.metrics import Metrics
from server.policy import PolicyFields
from server.store import Store
from server.tally import Tally

ADMIN_KEY = "an-admin-key-of-the-settings"
POLICY = PolicyFields(mode=Mode.OFF, threshold=0.7)


class Upstream:
    """Counts words for tokens; can be taken away."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.placement = Placement.SYSTEM
        self.context_tokens: int | None = 4096
        self.reachable = True
        self.tokenizes = True

    async def count_tokens(self, text: str) -> int | None:
        if not self.reachable:
            raise UpstreamUnavailable("down")
        return len(text.split()) if self.tokenizes else None


def build_app(store: Store, upstream: Upstream, *, auth_required: bool = True) -> FastAPI:
    directory = Directory(store)
    identifier = Identifier(directory, auth_required=auth_required, admin_key=ADMIN_KEY)
    callers = Callers(directory, identifier, Tally(Metrics()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await directory.refresh()
        yield

    app = FastAPI(lifespan=lifespan)
    install_error_shape(app)
    app.include_router(
        constitution_routes.build_router(
            store=store,
            identify=callers.identify,
            limits=Limits(max_principles=4, max_principle_chars=200, max_chars=400),
            max_body_bytes=200_000,
            placement=lambda: upstream.placement,
            count_tokens=upstream.count_tokens,
            context_tokens=lambda: upstream.context_tokens,
        )
    )
    app.include_router(
        policy_routes.build_router(
            store=store, identify=callers.identify, default=POLICY, default_from="policy", reward_model=False
        )
    )
    app.include_router(key_routes.build_router(store=store, identify=callers.identify))
    return app


def client_of(anonymous: TestClient, token: str) -> TestClient:
    """Return a client of the same application that sends this key."""
    return TestClient(anonymous.app, headers={"authorization": f"Bearer {token}"})
