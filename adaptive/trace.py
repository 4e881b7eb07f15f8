"""The trace: the whole candidate tree of a run, its decisions in order, as data that can be shown and replayed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from adaptive.candidate import CandidateRecord
from adaptive.committing import CommitReason
from adaptive.policy import Policy
from adaptive.spend import ScoringCall
from adaptive.stopping import StopReason


@dataclass(frozen=True, slots=True)
class Drew:
    """A batch was drawn. wanted: how many before the ceiling. max_tokens: the limit of each.

    shortened: why it is fewer than the policy would have it (load, budget, ceiling), in the order in which it shrank.
    """

    batch: int
    candidates: tuple[int, ...]
    wanted: int
    max_tokens: int
    at_s: float
    shortened: tuple[StopReason, ...] = ()


@dataclass(frozen=True, slots=True)
class Pruned:
    """Candidates were compared at a checkpoint. scores: of each, in the order of `compared`. pruned: those stopped."""

    batch: int
    checkpoint: int
    compared: tuple[int, ...]
    scores: tuple[float, ...]
    pruned: tuple[int, ...]
    at_s: float


@dataclass(frozen=True, slots=True)
class SettledOn:
    """A candidate was settled on while the run was going."""

    candidate: int
    reason: CommitReason
    at_s: float


@dataclass(frozen=True, slots=True)
class Degraded:
    """A part of the run failed and a lesser one took its place. part: `scorer` or `selector`. instead: its name."""

    part: str
    failed: str
    instead: str
    cause: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """No more candidates are drawn."""

    reason: StopReason
    at_s: float


@dataclass(frozen=True, slots=True)
class Picked:
    """The selector's ranking of the finalists, best first."""

    selector: str
    ranking: tuple[int, ...]
    at_s: float


Decision = Drew | Pruned | SettledOn | Degraded | Stopped | Picked


@dataclass(frozen=True, slots=True)
class Trace:
    """A run up to some moment: complete after its end, and true of what was spent if it was cancelled."""

    policy: Policy
    seed: int
    prompt_tokens: int
    candidates: tuple[CandidateRecord, ...]
    decisions: tuple[Decision, ...]
    scoring: tuple[ScoringCall, ...]
    took_s: float

    def to_plain(self, *, with_text: bool) -> dict[str, Any]:
        """Return the trace as JSON values. with_text: with what the candidates wrote, for the user who asked."""
        return {
            "policy": asdict(self.policy),
            "seed": self.seed,
            "prompt_tokens": self.prompt_tokens,
            "took_s": self.took_s,
            "candidates": [_candidate(record, with_text=with_text) for record in self.candidates],
            "decisions": [{"decision": _NAMES[type(each)], **asdict(each)} for each in self.decisions],
            "scoring": [asdict(call) for call in self.scoring],
        }


_NAMES = {
    Drew: "drew",
    Pruned: "pruned",
    SettledOn: "settled_on",
    Degraded: "degraded",
    Stopped: "stopped",
    Picked: "picked",
}


def _candidate(record: CandidateRecord, *, with_text: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "index": record.index,
        "batch": record.batch,
        "seed": record.sampling.seed,
        "temperature": record.sampling.temperature,
        "max_tokens": record.sampling.max_tokens,
        "fate": record.fate.value,
        "complete": record.complete,
        "finish_reason": record.finish_reason,
        "tokens": record.tokens,
        "scores": [asdict(score) for score in record.scores],
        "error": record.error,
        "drawn_s": record.drawn_s,
        "first_token_s": record.first_token_s,
        "ended_s": record.ended_s,
    }
    return plain | {"text": record.text} if with_text else plain
