"""The engine as the sampling loop sees it: a stream of tokens per candidate, and log-probabilities of label tokens.

An engine is made for one request. It knows everything about the request that is the same for every candidate (stop
strings, tools, response format, cache salt) and passes it upstream; the loop only decides what differs between them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

TokenIds = tuple[int, ...]
"""Ids of the model's own vocabulary. Text is never tokenized again: it may split differently and miss the cache."""


class EngineError(Exception):
    """The engine gave no answer; the message says why.

    EngineError
    ├── EngineBusy      it refuses more work just now (503): take it as "stop sampling more"
    ├── EngineRejected  it says that the request itself is wrong (400): asking again would be told the same
    └── EngineFailed    this one piece of work failed
    """


class EngineBusy(EngineError):
    """The engine refuses more work just now."""


class EngineRejected(EngineError):
    """The engine says that the request itself is wrong, and would say so of every other candidate."""


class EngineFailed(EngineError):
    """The engine failed to do this one piece of work."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is particular to one candidate.

    candidate: its index in the run, from 0; with the request's id it makes the upstream id that aborts it alone.
    temperature: 0 or more. seed: 0 to 2**63 - 1. max_tokens: at least 1.
    top_logprobs: how many alternatives to report per token; 0 = the drawn token only, None = no log-probabilities.
    readout_ids: label tokens whose log-probabilities ride along at every generated token (vLLM: logprob_token_ids).
    """

    candidate: int
    temperature: float
    seed: int
    max_tokens: int
    top_logprobs: int | None = None
    readout_ids: TokenIds = ()


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """One step of a candidate's stream: one token or several.

    logprobs: natural log-probability of each token, empty if not asked for. top_logprobs: those of its alternatives,
    largest first. readouts: those of `Sampling.readout_ids`, in that order. finish_reason: on the last step only.
    payload: what the engine wants passed on to the client untouched, such as a parsed piece of a tool call.
    """

    token_ids: TokenIds
    text: str = ""
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    readouts: tuple[tuple[float, ...], ...] = ()
    finish_reason: str | None = None
    payload: object = None


@dataclass(frozen=True, slots=True)
class LabelReading:
    """Log-probabilities of the label tokens as the next token of one sequence, over the full vocabulary.

    computed_tokens: how many tokens of the sequence were not served from the prefix cache: what the reading cost. An
    engine that is not told gives its best upper estimate.
    """

    logprobs: tuple[float, ...]
    computed_tokens: int


class Engine(Protocol):
    """What the loop asks of a language model for one request."""

    def generate(self, prompt: TokenIds, sampling: Sampling) -> AsyncGenerator[GeneratedTokens, None]:
        """Return the stream of one candidate. Its last step carries the finish reason.

        Closing the stream early, or cancelling whoever waits on it, aborts the work upstream at once. Raises
        `EngineBusy`, `EngineRejected` or `EngineFailed` while iterating.
        """
        ...

    async def score(self, sequences: Sequence[TokenIds], label_ids: TokenIds) -> tuple[LabelReading, ...]:
        """Return one reading per sequence, in order, from one upstream call for all of them.

        Raises `EngineBusy` or `EngineFailed`; also when a sequence does not fit into the context, as cutting it would
        lose the question at its end.
        """
        ...
