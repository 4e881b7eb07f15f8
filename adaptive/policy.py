"""The policy: how much a request may spend, and how its candidates are judged. Valid once built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from adaptive.annealing import CONSTANT, Annealing
from adaptive.answers import AnswerError, by_json_path, by_regex
from adaptive.errors import PolicyError

MAX_CANDIDATES: Final = 64
MAX_GROWTH: Final = 16.0


class Mode(StrEnum):
    """What is done with a request."""

    OFF = "off"
    """One candidate."""
    ADAPTIVE = "adaptive"
    """One candidate, then more only while none reaches the threshold."""
    BEST_OF_N = "best_of_n"
    """`n_max` candidates together."""


class ScorerName(StrEnum):
    """Where a candidate's score comes from; the classes are in `scoring.py`."""

    SELF_EVALUATION = "self_evaluation"
    READ_OUT = "read_out"
    STAGED = "staged"
    """By the read-out while it is generated, by self-evaluation when it has ended."""
    MEAN_LOG_PROBABILITY = "mean_log_probability"
    GROUP_CONFIDENCE = "group_confidence"


STAGES: Final = (ScorerName.READ_OUT, ScorerName.SELF_EVALUATION)
"""What `STAGED` consists of: who judges an unfinished candidate, and who one that has ended."""
READING_OUT: Final = frozenset({ScorerName.READ_OUT, ScorerName.STAGED})
"""Scorers that need a model whose read-out is known."""


def stages_of(scorer: ScorerName) -> tuple[ScorerName, ...]:
    """Return whose scores it consists of."""
    return STAGES if scorer is ScorerName.STAGED else (scorer,)


class SelectorName(StrEnum):
    """How the reply is picked from the candidates; the classes are in `selection.py`."""

    SELF_EVALUATION = "self_evaluation"
    """The highest score, whatever scorer is in force."""
    MAJORITY = "majority"
    REWARD_MODEL = "reward_model"
    FIRST = "first"


class Streaming(StrEnum):
    """When a streaming client is given tokens."""

    LIVE = "live"
    """From the moment when the reply is settled, even if it is still being generated."""
    WHOLE = "whole"
    """When the reply is complete."""


class AtDeadline(StrEnum):
    """What happens at the deadline when no candidate is complete."""

    CUT = "cut"
    """The best so far is returned as it stands."""
    FINISH = "finish"
    """The best so far alone goes on to its end."""


class PassThrough(StrEnum):
    """Why a request is not sampled more than once."""

    OFF = "off"
    GREEDY = "greedy"
    """At temperature 0 every candidate would be the same."""
    SINGLE = "single"
    """The policy allows one candidate."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Candidates are compared when each has this many tokens, and this share of them goes on."""

    tokens: int
    keep: float


@dataclass(frozen=True, slots=True)
class Policy:
    """How much one request may spend, and on what grounds.

    mode: see `Mode`.
    n_max: most candidates, 1 to 64. A candidate that fails upstream does not count.
    threshold: adaptive sampling stops at a candidate with at least this score, 0 to 1.
    batch_growth: how the number of candidates drawn so far grows from batch to batch, above 1 to 16; 2 gives 1, 2, 4,
        8, 16, so n_max is reached in log2(n_max) rounds.
    annealing: temperature over the candidate index. Adaptive mode only: candidates of `best_of_n` start together, and
        are equals.
    checkpoints: where candidates are compared and pruned, tokens ascending.
    token_budget: most generated tokens of all candidates together, at least 1, or None. Scoring is counted apart.
    deadline_ms: time from the first draw to the reply, at least 1, or None. at_deadline: see `AtDeadline`.
    scorer, selector: see their enums. `majority` needs exactly one of answer_regex and answer_json_path.
    streaming: see `Streaming`. commit_at: tokens of any candidate at which a streaming client is given the best so far.

    Raises `PolicyError` naming the first wrong field.
    """

    mode: Mode = Mode.ADAPTIVE
    n_max: int = 8
    threshold: float = 0.9
    batch_growth: float = 2.0
    annealing: Annealing = field(default_factory=Annealing)
    checkpoints: tuple[Checkpoint, ...] = (Checkpoint(64, 0.5), Checkpoint(256, 0.5))
    token_budget: int | None = None
    deadline_ms: int | None = None
    at_deadline: AtDeadline = AtDeadline.CUT
    scorer: ScorerName = ScorerName.SELF_EVALUATION
    selector: SelectorName = SelectorName.SELF_EVALUATION
    answer_regex: str | None = None
    answer_json_path: str | None = None
    streaming: Streaming = Streaming.LIVE
    commit_at: int | None = None

    def __post_init__(self) -> None:
        _check_range("n_max", self.n_max, 1, MAX_CANDIDATES)
        _check_range("threshold", self.threshold, 0, 1)
        if not 1.0 < self.batch_growth <= MAX_GROWTH:
            raise PolicyError("batch_growth", f"is {self.batch_growth}; give a number above 1, up to {MAX_GROWTH:g}")
        _check_checkpoints(self.checkpoints)
        for name, value in (
            ("token_budget", self.token_budget),
            ("deadline_ms", self.deadline_ms),
            ("commit_at", self.commit_at),
        ):
            if value is not None and value < 1:
                raise PolicyError(name, f"is {value}; give at least 1, or leave it out")
        if self.commit_at is not None and self.streaming is not Streaming.LIVE:
            raise PolicyError("commit_at", "has no meaning with streaming 'whole'; leave it out, or stream 'live'")
        self._check_answer()

    def _check_answer(self) -> None:
        given = [name for name in ("answer_regex", "answer_json_path") if getattr(self, name) is not None]
        if self.selector is not SelectorName.MAJORITY:
            if given:
                raise PolicyError(given[0], "is only read by the selector 'majority'; set that, or leave it out")
            return
        if len(given) != 1:
            raise PolicyError("selector", "'majority' needs exactly one of answer_regex and answer_json_path")
        try:
            self.answer_of()
        except AnswerError as error:
            raise PolicyError(given[0], str(error)) from error

    def answer_of(self) -> Callable[[str], str | None]:
        """Return the function that takes the answer out of a reply, for the selector `majority`.

        Raises `PolicyError` under any other selector.
        """
        if self.answer_regex is not None:
            return by_regex(self.answer_regex)
        if self.answer_json_path is not None:
            return by_json_path(self.answer_json_path)
        raise PolicyError("selector", f"is {self.selector.value!r}, which extracts no answer")

    def pass_through(self, temperature: float) -> PassThrough | None:
        """Return why a request at that temperature cannot gain from sampling again, or None if it can."""
        if self.mode is Mode.OFF:
            return PassThrough.OFF
        if self.n_max == 1:
            return PassThrough.SINGLE
        if temperature == 0:
            return PassThrough.GREEDY
        return None

    def candidates(self, choices: int) -> int:
        """Return the most candidates that may be drawn for a client that wants that many choices (OpenAI's `n`)."""
        return max(choices, 1 if self.mode is Mode.OFF else self.n_max)

    def may_save(self, choices: int = 1) -> bool:
        """Return True if a run may cost less than its full best-of-N: it may draw fewer, or prune."""
        saves = self.mode is Mode.ADAPTIVE or (self.mode is Mode.BEST_OF_N and bool(self.checkpoints))
        return saves and self.candidates(choices) > choices

    def exhaustive(self) -> Policy:
        """Return the full best-of-N that this policy saves against: `n_max` equals, each generated to its end."""
        return replace(
            self, mode=Mode.BEST_OF_N, annealing=CONSTANT, checkpoints=(), token_budget=None, deadline_ms=None
        )


def _check_range(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise PolicyError(name, f"is {value}; give a number from {least} to {most}")


def _check_checkpoints(checkpoints: tuple[Checkpoint, ...]) -> None:
    before = 0
    for place, checkpoint in enumerate(checkpoints):
        if checkpoint.tokens <= before:
            raise PolicyError(
                f"checkpoints[{place}].tokens",
                f"is {checkpoint.tokens}; give more than {before}: checkpoints are at least 1 and ascend",
            )
        if not 0.0 < checkpoint.keep <= 1.0:
            raise PolicyError(f"checkpoints[{place}].keep", f"is {checkpoint.keep}; give a share above 0, up to 1")
        before = checkpoint.tokens
