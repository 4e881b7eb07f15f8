"""What a client is told of a sampled request, and where: the `preamble` object of the body, the same in one header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from adaptive.candidate import CandidateRecord, Fate
from adaptive.first_token import plain_first_token
from adaptive.restraint import restraints
from adaptive.run import Outcome
from server.sampling_hint import hint

HEADER: Final = b"x-preamble-sampling"


class Out(Protocol):
    """Where an answer goes. It adds the headers that every answer has."""

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send status and headers; once."""

    async def write(self, data: bytes, *, is_token: bool = True) -> None:
        """Send a piece of the body. is_token: it is more than a keep-alive."""

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body."""


def report(outcome: Outcome, first_token_s: float | None) -> dict[str, Any]:
    """Return the `preamble` object. first_token_s: a streaming client's first token, seconds into the run."""
    spend, savings, trace = outcome.spend, outcome.savings, outcome.trace
    told = {
        "mode": trace.policy.mode.value,
        "candidates": {"drawn": spend.drawn, "pruned": spend.candidates[Fate.PRUNED]},
        "tokens": {
            "generated": spend.generated_tokens,
            "scored": spend.scoring_tokens,
            "saved": round(savings.saved_tokens, 1),
            "saved_is_estimated": savings.estimated,
        },
        "choices": [_choice(record) for record in outcome.choices],
        "stop_reason": outcome.reason.value,
        "restrained_by": [reason.value for reason in restraints(trace)],
        "scorer": outcome.scorer,
        "selector": outcome.selector,
        "degradations": [
            {"part": each.part, "failed": each.failed, "instead": each.instead, "cause": each.cause}
            for each in outcome.degradations
        ],
        "seed": trace.seed,
        "first_token_ms": _ms(first_token_s),
        **_plain_first_token(outcome, streamed=first_token_s is not None),
        "took_ms": _ms(trace.took_s),
    }
    said = hint(outcome)
    return told if said is None else told | {"hint": said}


def header_value(told: dict[str, Any]) -> bytes:
    """Return the figures of the `preamble` object as a dictionary of RFC 8941."""
    values = {
        "mode": told["mode"],
        "drawn": told["candidates"]["drawn"],
        "pruned": told["candidates"]["pruned"],
        "generated": told["tokens"]["generated"],
        "scored": told["tokens"]["scored"],
        "saved": told["tokens"]["saved"],
        "score": told["choices"][0]["score"],
        "stop": told["stop_reason"],
    }
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None).encode()


def passed_through(reason: str) -> bytes:
    """Return the header of a request that was not sampled."""
    return f"pass_through={reason}".encode()


def _plain_first_token(outcome: Outcome, *, streamed: bool) -> dict[str, Any]:
    """Return when plain best-of-N would have begun to stream, and whether that is this run's own figure or a guess."""
    plain = plain_first_token(outcome.trace) if streamed else None
    return {
        "best_of_n_first_token_ms": None if plain is None else _ms(plain.after_s),
        "best_of_n_first_token_is_estimated": None if plain is None else plain.estimated,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _choice(record: CandidateRecord) -> dict[str, Any]:
    score = record.score
    return {
        "candidate": record.index,
        "score": None if score is None else round(score.value, 4),
        # significant digits: the labels of a trained question are a tiny share by intent, and 0.0 would say "none"
        "label_mass": None if score is None or score.label_mass is None else float(f"{score.label_mass:.4g}"),
        "tokens": record.tokens,
        "complete": record.complete,
    }
