"""A deterministic engine in memory: every candidate says what its script says, when its script says it.

It implements `Engine` as the real one does, aborting and `max_tokens` included, and notes what it was asked to do.
With `virtual_time.run_virtually` the timing of a run is exact and takes no time.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from adaptive.clock import Clock
from adaptive.engine import EngineError, GeneratedTokens, LabelReading, Sampling, TokenIds


@dataclass(frozen=True, slots=True)
class ScriptedStep:
    """What is generated, that many seconds after the step before."""

    after_s: float
    tokens: GeneratedTokens


@dataclass(frozen=True, slots=True)
class Script:
    """One candidate's stream. failure: raised after the last step, in place of an end."""

    steps: tuple[ScriptedStep, ...]
    failure: EngineError | None = None


def reply(
    token_ids: Sequence[int],
    *,
    every_s: float = 1.0,
    per_step: int = 1,
    finish_reason: str | None = "stop",
    logprob: float | None = None,
    failure: EngineError | None = None,
) -> Script:
    """Return a script that generates those tokens, `per_step` at a time, one step every `every_s` seconds.

    The text of a token is its id and a space. logprob: the log-probability of each token, if there are any.
    """
    pieces = [tuple(token_ids[at : at + per_step]) for at in range(0, len(token_ids), per_step)] or [()]
    steps = [
        ScriptedStep(
            every_s,
            GeneratedTokens(
                token_ids=piece,
                text="".join(f"{token} " for token in piece),
                logprobs=() if logprob is None else (logprob,) * len(piece),
            ),
        )
        for piece in pieces
    ]
    if failure is None and finish_reason is not None:
        steps[-1] = replace(steps[-1], tokens=replace(steps[-1].tokens, finish_reason=finish_reason))
    return Script(tuple(steps), failure)


class ScriptedEngine:
    """An engine that plays scripts: candidate i plays the i-th, beginning anew after the last.

    judge: from a scored sequence to the share of the first label among two, the P(win or tie) of self-evaluation.
    score_s: how long a scoring call takes. label_mass: the two labels' share of all probability.
    scoring_failures: raised by the first scoring calls, one each; None lets a call pass.
    """

    def __init__(
        self,
        scripts: Sequence[Script],
        clock: Clock,
        *,
        judge: Callable[[TokenIds], float] = lambda _: 0.5,
        score_s: float = 0.0,
        label_mass: float = 1.0,
        scoring_failures: Sequence[EngineError | None] = (),
    ) -> None:
        self._scripts = tuple(scripts)
        self._clock = clock
        self._judge = judge
        self._score_s = score_s
        self._label_mass = label_mass
        self._scoring_failures = tuple(scoring_failures)
        self.drawn: list[Sampling] = []
        self.prompts: list[TokenIds] = []
        self.scored: list[tuple[TokenIds, ...]] = []
        self.running: set[int] = set()
        self.most_running = 0
        self.aborted: dict[int, float] = {}
        """Candidates whose stream was closed before its end, and when."""

    async def generate(self, prompt: TokenIds, sampling: Sampling) -> AsyncGenerator[GeneratedTokens, None]:
        """Play the candidate's script, cut at its `max_tokens`."""
        index = sampling.candidate
        script = self._scripts[index % len(self._scripts)]
        self.prompts.append(prompt)
        self.drawn.append(sampling)
        self.running.add(index)
        self.most_running = max(self.most_running, len(self.running))
        self.aborted[index] = math.nan
        room = sampling.max_tokens
        try:
            for step in script.steps:
                await self._clock.sleep(step.after_s)
                tokens = _cut(step.tokens, room)
                room -= len(tokens.token_ids)
                if tokens.finish_reason is not None:
                    del self.aborted[index]
                yield tokens
                if tokens.finish_reason is not None:
                    return
            del self.aborted[index]
            if script.failure is not None:
                raise script.failure
        finally:
            self.running.discard(index)
            if index in self.aborted:
                self.aborted[index] = self._clock.now()

    async def score(self, sequences: Sequence[TokenIds], label_ids: TokenIds) -> tuple[LabelReading, ...]:
        """Return what `judge` says of each sequence, as log-probabilities of the two labels."""
        call = len(self.scored)
        self.scored.append(tuple(sequences))
        await self._clock.sleep(self._score_s)
        failure = self._scoring_failures[call] if call < len(self._scoring_failures) else None
        if failure is not None:
            raise failure
        return tuple(self._reading(sequence, label_ids) for sequence in sequences)

    def _reading(self, sequence: TokenIds, label_ids: TokenIds) -> LabelReading:
        p_win_or_tie = self._judge(sequence)
        shares = (p_win_or_tie, 1.0 - p_win_or_tie)[: len(label_ids)]
        logprobs = tuple(
            math.log(share * self._label_mass) if share * self._label_mass else -math.inf for share in shares
        )
        return LabelReading(logprobs, computed_tokens=1)


def _cut(tokens: GeneratedTokens, room: int) -> GeneratedTokens:
    """Return the step as an engine with `room` tokens left would give it: at the limit it ends with `length`."""
    if len(tokens.token_ids) < room or (len(tokens.token_ids) == room and tokens.finish_reason is not None):
        return tokens
    kept = tokens.token_ids[:room]
    return replace(
        tokens,
        token_ids=kept,
        text="".join(f"{token} " for token in kept),
        logprobs=tokens.logprobs[:room],
        finish_reason="length",
    )
