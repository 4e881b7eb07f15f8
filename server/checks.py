"""What `preamble doctor` finds: one check per need of the proxy, each with a remedy unless it is fine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """ok: fine. warning: the proxy works, something is worse than it could be. failed: the proxy cannot work."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `remedy` says what to do about it and is None only where nothing needs to be done."""

    name: str
    status: Status
    message: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order in which a request meets what they are about."""

    checks: tuple[Check, ...]

    @property
    def exit_status(self) -> int:
        """1 when a check failed, else 0."""
        return int(any(check.status is Status.FAILED for check in self.checks))


def ok(name: str, message: str) -> Check:
    """Return a check that found all well."""
    return Check(name, Status.OK, message)


def warning(name: str, message: str, remedy: str) -> Check:
    """Return a check that found something to improve."""
    return Check(name, Status.WARNING, message, remedy)


def failed(name: str, message: str, remedy: str) -> Check:
    """Return a check that found something that must change."""
    return Check(name, Status.FAILED, message, remedy)
