"""The hint in the `preamble` object: in plain words what a request went without, and what can be done about it."""

from __future__ import annotations

from typing import Final

from adaptive.restraint import restraints
from adaptive.run import Outcome
from adaptive.stopping import StopReason
from adaptive.trace import Degraded

_RESTRAINED: Final = {
    StopReason.LOAD: "The upstream's queue was deep, so {drawn} of {most} candidates were drawn. Ask again when it is "
    "less busy.",
    StopReason.CEILING: "The ceiling on concurrent candidates left room for {drawn} of {most}. Send fewer requests at "
    "once, or ask the operator for more.",
    StopReason.ENGINE_BUSY: "The upstream refused more work, so no more than {drawn} of {most} candidates were tried. "
    "Ask again when it is less busy.",
}


def hint(outcome: Outcome) -> str | None:
    """Return what there is to say, None if the request got all that its policy promises."""
    trace = outcome.trace
    drawn, most = len(trace.candidates), max(trace.policy.n_max, len(outcome.choices))
    said = [_RESTRAINED[reason].format(drawn=drawn, most=most) for reason in restraints(trace)]
    said += [_degraded(each) for each in outcome.degradations]
    return " ".join(said) or None


def _degraded(degraded: Degraded) -> str:
    said = f"The {degraded.part} {degraded.failed} failed ({degraded.cause.rstrip('.')})"
    said += f"; in its place: {degraded.instead}."
    return f"{said} The operator's `preamble doctor` says more." if degraded.part == "scorer" else said
