"""Builds the ASGI application: opens every resource, wires the parts together, closes everything again.

Two applications behind one door: `Proxy` answers the `/v1` routes of vLLM at the speed of raw ASGI, FastAPI answers the
REST resources and the operations routes. No middleware stands in front of either.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from constitutions.compose import Placement
from constitutions.constitution import Limits
from server import __version__, constitution_routes, key_routes, operations_routes, policy_routes, trace_routes
from server.callers import Callers
from server.directory import Directory
from server.error_routes import error_response, install_error_shape
from server.errors import Forbidden, StoreUnavailable, UpstreamError
from server.identity import Identifier, Salt, load_or_create_secret
from server.logs import AccessLog, configure_logging
from server.metrics import Metrics
from server.openapi import describe_proxied_routes
from server.probe import count_tokens, probe
from server.proxy import Proxy
from server.reward import reward_upstream
from server.same_machine import check_same_machine
from server.sampling_setup import chat_explorations, chat_sampling, load_watch, self_evaluation_configs, trace_files
from server.settings import Settings
from server.store import Store
from server.tally import Tally
from server.upstream import Timeouts, UpstreamClient
from server.upstream_state import UpstreamWatch

# Under /v1, and ours: everything else under /v1 is vLLM's.
_OURS: Final = ("/v1/constitution", "/v1/policy", "/v1/users/", "/v1/keys", "/v1/traces/")
_READY_TIMEOUT_S: Final = 2.0
_PLACEMENTS: Final = {"system": Placement.SYSTEM, "first_user": Placement.FIRST_USER, "auto": None}


class PreambleApp:
    """The door: sends a request to the proxy or to FastAPI, by its path."""

    def __init__(self, rest: FastAPI, *, keys_required: bool) -> None:
        self.rest = rest
        self._keys_required = keys_required
        self.proxy: ASGIApp | None = None  # there is one for as long as the lifespan lasts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "http" and self.proxy is not None:
            path: str = scope["path"]
            if path.startswith("/v1/"):
                if not self._keys_required:
                    try:
                        check_same_machine(scope["headers"])
                    except Forbidden as error:
                        await error_response(error)(scope, receive, send)
                        return
                if not path.startswith(_OURS):
                    await self.proxy(scope, receive, send)
                    return
        await self.rest(scope, receive, send)


def create_app(settings: Settings) -> PreambleApp:
    """Return the application for `settings`, whose `upstream` must be set.

    Opens the store; the lifespan opens the rest and closes everything. Raises `StoreUnavailable`, and
    `SelfEvaluationConfigError` for a file that the setting names.
    """
    if settings.upstream is None:
        raise ValueError("create_app needs settings.upstream; `preamble serve` sets it when it starts an engine")
    configure_logging(settings.log_level, settings.log_format)
    metrics = Metrics()
    salt = Salt(_secret(settings))
    store = Store.open(settings.store_url)
    directory = Directory(store, on_failure=metrics.store_degraded.inc)
    identifier = Identifier(directory, auth_required=settings.auth_required, admin_key=_revealed(settings.admin_key))
    tally = Tally(metrics)
    callers = Callers(directory, identifier, tally)
    upstream = UpstreamClient(
        settings.upstream,
        api_key=_revealed(settings.upstream_api_key),
        max_connections=settings.upstream_connections,
        timeouts=Timeouts(
            connect_s=settings.connect_timeout_s,
            first_token_s=settings.first_token_timeout_s,
            stall_s=settings.stall_timeout_s,
            total_s=settings.total_timeout_s,
        ),
    )
    watch = UpstreamWatch(partial(probe, upstream), forced_placement=_PLACEMENTS[settings.system_role])
    load = load_watch(settings, upstream, metrics)
    reward = reward_upstream(settings)
    explorations = chat_explorations(settings, load, metrics, chance=secrets.SystemRandom().random)
    configs = self_evaluation_configs(settings, watch)
    sampling = chat_sampling(settings, upstream, watch, configs, load, metrics, callers.policy, explorations, reward)
    access_log = AccessLog() if settings.access_log else None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(store.close)
            stack.callback(metrics.forget_process)
            stack.callback(tally.flush)
            if access_log is not None:
                stack.callback(access_log.flush)
            stack.push_async_callback(upstream.aclose)
            if reward is not None:
                stack.push_async_callback(reward.aclose)
            await stack.enter_async_context(watch.running())
            await stack.enter_async_context(load.running())
            await stack.enter_async_context(explorations.running())
            await directory.refresh()
            app.proxy = Proxy(
                callers=callers,
                constitutions=callers,
                salt=salt.cache_salt,
                upstream=upstream,
                upstream_state=watch,
                tally=tally,
                access_log=access_log,
                max_body_bytes=settings.max_body_bytes,
                sampling=sampling,
                new_ids=configs.new_ids,
            )
            yield
            app.proxy = None

    rest = FastAPI(
        title="Preamble",
        version=__version__,
        summary="An OpenAI-compatible proxy in front of vLLM, with a constitution for every user.",
        lifespan=lifespan,
    )
    install_error_shape(rest)
    rest.include_router(
        constitution_routes.build_router(
            store=store,
            identify=callers.identify,
            limits=Limits(
                max_principles=settings.max_principles,
                max_principle_chars=settings.max_principle_chars,
                max_chars=settings.max_constitution_chars,
            ),
            max_body_bytes=settings.max_body_bytes,
            placement=lambda: watch.placement,
            count_tokens=_TokenCounter(upstream, watch),
            context_tokens=watch.context_tokens,
        )
    )
    rest.include_router(
        policy_routes.build_router(
            store=store,
            identify=callers.identify,
            default=settings.policy,
            default_from=settings.policy_from,
            reward_model=reward is not None,
        )
    )
    rest.include_router(key_routes.build_router(store=store, identify=callers.identify))
    rest.include_router(trace_routes.build_router(traces=trace_files(settings), identify=callers.identify))
    rest.include_router(
        operations_routes.build_router(
            metrics=metrics,
            before_scrape=tally.flush,
            upstream_ready=partial(_upstream_ready, upstream, watch),
            store_ready=partial(_store_ready, store),
        )
    )
    describe_proxied_routes(rest)
    app = PreambleApp(rest, keys_required=settings.auth_required)
    return app


class _TokenCounter:
    """Counts tokens with the upstream's tokenizer of the first model that it serves."""

    def __init__(self, upstream: UpstreamClient, watch: UpstreamWatch) -> None:
        self._upstream = upstream
        self._watch = watch

    async def __call__(self, text: str) -> int | None:
        """Return how many tokens `text` has, None when the upstream cannot say now."""
        profile = self._watch.profile
        if profile is None or not profile.models:
            return None
        return await count_tokens(self._upstream, profile.models[0].name, text)


async def _upstream_ready(upstream: UpstreamClient, watch: UpstreamWatch) -> bool:
    """Ask the upstream whether it is healthy: it may have gone away without any request noticing."""
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            response = await upstream.request("GET", "/health")
            await response.read()
    except (UpstreamError, TimeoutError):
        watch.suspect()
        return False
    return response.status < http.HTTPStatus.INTERNAL_SERVER_ERROR


async def _store_ready(store: Store) -> bool:
    try:
        await asyncio.to_thread(store.ping)
    except StoreUnavailable:
        return False
    return True


def _secret(settings: Settings) -> bytes:
    given = _revealed(settings.secret)
    return load_or_create_secret(settings.data_dir) if given is None else given.encode()


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
