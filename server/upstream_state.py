"""What is known of the upstream, kept current in the background so that no request has to ask.

The upstream may start after the proxy, restart with another model, or go away: the profile is probed until it is there,
and again when a request finds the upstream unreachable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from constitutions.compose import Placement
from server.errors import UpstreamError
from server.probe import UpstreamProfile

_FIRST_RETRY_S = 0.25
_LONGEST_RETRY_S = 5.0


class UpstreamWatch:
    """Holds the latest profile. `probe` asks the upstream; `forced_placement` overrides what the template says."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[UpstreamProfile]],
        *,
        forced_placement: Placement | None = None,
    ) -> None:
        self._probe = probe
        self._forced = forced_placement
        self._suspected = asyncio.Event()
        self._suspected.set()
        self.profile: UpstreamProfile | None = None
        self.placement = forced_placement or Placement.SYSTEM

    @property
    def reachable(self) -> bool:
        """True when the latest word of the upstream was a good one."""
        return self.profile is not None and not self._suspected.is_set()

    def suspect(self) -> None:
        """Say that the upstream was just found unreachable: it will be probed until it answers."""
        self._suspected.set()

    def context_tokens(self) -> int | None:
        """Return the context window of the first model in tokens, None if it is not known."""
        if self.profile is None or not self.profile.models:
            return None
        return self.profile.models[0].max_model_len

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Probe now, waiting for that first answer, and then in the background for as long as the context lasts."""
        await self._probe_once()
        task = asyncio.create_task(self._keep_current())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep_current(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            await self._suspected.wait()
            await asyncio.sleep(retry_s)
            retry_s = _FIRST_RETRY_S if await self._probe_once() else min(2 * retry_s, _LONGEST_RETRY_S)

    async def _probe_once(self) -> bool:
        log = structlog.get_logger(__name__)
        try:
            profile = await self._probe()
        except UpstreamError as error:
            log.warning("upstream_unreachable", code=error.code)
            return False
        if not profile.reachable:
            log.warning("upstream_unreachable")
            return False
        self._suspected.clear()
        self.profile = profile
        self.placement = self._forced or profile.placement
        if profile.models_status in {401, 403}:
            log.warning(
                "upstream_refuses_our_key", remedy="Set upstream_api_key to the key that vLLM was started with."
            )
        log.info("upstream_ready", version=profile.version, models=profile.model_names, placement=self.placement.value)
        return True
