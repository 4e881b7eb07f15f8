"""`preamble doctor`: checks everything the proxy needs, without a running proxy, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from rich.console import Console
from rich.text import Text

from server.checkpoint import packaged_artefact
from server.checks import Check, Report, Status, failed, ok
from server.doctor_local import check_keys, check_secret, check_self_evaluation, check_store, store_exists, tell_policy
from server.doctor_reward import check_reward
from server.doctor_upstream import check_upstream
from server.engine import engine_available
from server.probe import probing_client
from server.reward import reward_upstream
from server.settings import Settings, SettingsError
from server.terminal import say

_COLOURS: Final = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "red"}


def examine(load: Callable[[], Settings]) -> Report:
    """Return what is fine and what is not. `load` gives the settings, or raises `SettingsError`."""
    try:
        settings = load()
    except SettingsError as error:
        lines = str(error).splitlines()
        return Report(tuple(failed("settings", line, "Correct this setting, then run doctor again.") for line in lines))
    checks = [ok("settings", "All are valid; `preamble serve --print-settings` shows them.")]
    store, *disk = check_store(settings)
    usable = store.status is Status.OK and store_exists(settings)
    checks += [store, *disk, check_keys(settings, store_usable=usable), check_secret(settings)]
    checks += [tell_policy(settings)]
    if settings.upstream is None:
        checks += [check_self_evaluation(settings, packaged_artefact()), _check_engine(settings)]
    else:
        checks += asyncio.run(_examine_upstream(settings))
    checks += [] if settings.reward_upstream is None else [asyncio.run(_examine_reward(settings))]
    return Report(tuple(checks))


def print_report(report: Report, console: Console, *, as_json: bool) -> None:
    """Print a report for people, or as one JSON object."""
    if as_json:
        checks = [asdict(check) for check in report.checks]
        say(console, json.dumps({"ok": report.exit_status == 0, "checks": checks}, indent=2))
        return
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        line = Text.assemble((f"{check.status:8}", _COLOURS[check.status]), f"{check.name:{width}}  {check.message}")
        console.print(line, soft_wrap=True)
        if check.remedy is not None:
            say(console, f"{'':{8 + width}}  -> {check.remedy}")


async def _examine_upstream(settings: Settings) -> list[Check]:
    async with probing_client(settings) as client:
        return await check_upstream(settings, client, nonce=secrets.token_hex(8))


async def _examine_reward(settings: Settings) -> Check:
    reward = reward_upstream(settings)
    if reward is None:
        raise ValueError("no reward upstream is set")
    try:
        return await check_reward(reward, settings)
    finally:
        await reward.aclose()


def _check_engine(settings: Settings) -> Check:
    missing = engine_available(settings.model)
    if missing is not None:
        return failed("embedded engine", "No upstream is set, and the embedded engine cannot start.", missing)
    return ok(
        "embedded engine",
        "No upstream is set; the embedded vLLM is installed and will be started. "
        "While it runs, `preamble doctor --upstream URL` checks it too.",
    )
