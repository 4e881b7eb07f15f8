"""The proxy's knowledge of the upstream follows the upstream, without any request waiting for it."""

from __future__ import annotations

import asyncio

from constitutions.compose import Placement
from server.probe import UpstreamModel, UpstreamProfile
from server.upstream_state import UpstreamWatch


class ScriptedProbe:
    """Answers with `profile`, whatever it is at the time."""

    def __init__(self, profile: UpstreamProfile) -> None:
        self.profile = profile
        self.calls = 0

    async def __call__(self) -> UpstreamProfile:
        self.calls += 1
        return self.profile


GONE = UpstreamProfile(reachable=False)
GEMMA = UpstreamProfile(reachable=True, honours_system=False, models=(UpstreamModel("g", 4096),))


async def until_reachable(watch: UpstreamWatch) -> None:
    async with asyncio.timeout(5):
        while not watch.reachable:  # noqa: ASYNC110 -- the watch has no event for tests to wait on
            await asyncio.sleep(0.01)


async def test_the_template_decides_where_a_constitution_goes() -> None:
    watch = UpstreamWatch(ScriptedProbe(GEMMA))
    async with watch.running():
        assert watch.reachable
        assert watch.placement is Placement.FIRST_USER
        assert watch.context_tokens() == 4096


async def test_a_setting_overrides_the_template() -> None:
    watch = UpstreamWatch(ScriptedProbe(GEMMA), forced_placement=Placement.SYSTEM)
    async with watch.running():
        assert watch.placement is Placement.SYSTEM


async def test_an_upstream_that_comes_later_is_found() -> None:
    probe = ScriptedProbe(GONE)
    watch = UpstreamWatch(probe)
    async with watch.running():
        assert not watch.reachable
        assert watch.context_tokens() is None
        probe.profile = GEMMA
        await until_reachable(watch)
        assert watch.placement is Placement.FIRST_USER


async def test_a_suspected_upstream_is_probed_again_and_not_otherwise() -> None:
    probe = ScriptedProbe(GEMMA)
    watch = UpstreamWatch(probe)
    async with watch.running():
        await asyncio.sleep(0.4)
        assert probe.calls == 1
        watch.suspect()
        assert not watch.reachable
        await until_reachable(watch)
        assert probe.calls == 2
