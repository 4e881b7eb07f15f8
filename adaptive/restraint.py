"""Restraint: what kept a run from the candidates that its policy would have allowed. Pure, from the trace alone."""

from __future__ import annotations

from typing import Final

from adaptive.stopping import StopReason
from adaptive.trace import Drew, Stopped, Trace

RESTRAINTS: Final = (StopReason.LOAD, StopReason.CEILING, StopReason.ENGINE_BUSY)
"""What others' requests do to a request: not its own policy, not its own candidates."""


def restraints(trace: Trace) -> tuple[StopReason, ...]:
    """Return those of `RESTRAINTS` because of which the run got fewer candidates, in that order.

    They are the reason to draw no more, and what made the latest batch smaller; an earlier one was made up for. The
    reason alone would not tell: a run whose only batch was halved by load may have been ended by its deadline.
    """
    found = {decision.reason for decision in trace.decisions if isinstance(decision, Stopped)}
    latest = next((each for each in reversed(trace.decisions) if isinstance(each, Drew)), None)
    if latest is not None:
        found.update(latest.shortened)
    return tuple(reason for reason in RESTRAINTS if reason in found)
