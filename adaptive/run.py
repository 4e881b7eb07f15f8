"""What goes into a run and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from adaptive.candidate import CandidateRecord
from adaptive.engine import TokenIds
from adaptive.savings import Savings
from adaptive.spend import Spend
from adaptive.stopping import StopReason
from adaptive.trace import Degraded, Trace


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered.

    prompt: its tokens, constitution included. max_tokens: the client's limit for one reply, or what the context has
    room for. temperature: the client's. seed: the client's, or one drawn for the request, so that it can be replayed.
    choices: replies wanted (OpenAI's `n`), at least 1. stream: the client takes tokens as they come.
    """

    prompt: TokenIds
    max_tokens: int
    temperature: float
    seed: int
    choices: int = 1
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gives back.

    choices: the replies, best first, at least one; fewer than asked for where candidates were lost or a limit cut the
        run short. One with `complete` False was cut by a limit of ours: to the client its finish reason is `length`.
    reason: why it stopped.
    scorer, selector: those in force at the end; `none` for a scorer when all have failed.
    degradations: where a lesser part had to take over.
    trace: the whole candidate tree. spend: what it cost. savings: estimated against full best-of-N.
    """

    choices: tuple[CandidateRecord, ...]
    reason: StopReason
    scorer: str
    selector: str
    degradations: tuple[Degraded, ...]
    trace: Trace
    spend: Spend
    savings: Savings
