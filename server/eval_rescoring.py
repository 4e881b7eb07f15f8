"""Scoring candidates that are recorded already, for `preamble eval --rescore`: one sampling, several ways of scoring.

A checkpoint that was trained to judge itself by new tokens writes what the original one writes, so its scores are
studied on the original's candidates: whatever differs between two ways of scoring is then theirs, and no luck of
sampling. The scorers are those that judge while candidates grow (`eval_sampling.score`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from adaptive.candidate import Partial
from adaptive.clock import Clock
from adaptive.engine import EngineFailed
from adaptive.evaluation.recording import Recording, Setup
from adaptive.evaluation.tasks import Task
from adaptive.policy import ScorerName
from server.eval_errors import EvalError
from server.eval_sampling import Job, Sampled, Scored, jobs_of, score
from server.vllm_engine import VllmEngine

Candidates = Mapping[tuple[str, int], Recording]
"""By the digest of their prompt and their index."""


def candidates_of(
    recordings: Mapping[str, Recording], setup: Setup, tasks: Sequence[Task], n: int, seed: int
) -> Candidates:
    """Return those of one setup, of all prompts that have n; none if no prompt has."""
    found: dict[tuple[str, int], Recording] = {}
    for task in tasks:
        keys = [job.key for job in jobs_of([task], n, seed, setup)]
        if all(key in recordings for key in keys):
            found |= {(task.digest, index): recordings[key] for index, key in enumerate(keys)}
    return found


class Rescorer:
    """Scores candidates by the self-evaluation in force at the upstream. clock: what times are measured with."""

    def __init__(self, sampled: Sampled, candidates: Candidates, clock: Clock) -> None:
        self._sampled = sampled
        self._candidates = candidates
        self._clock = clock
        self._salt = secrets.token_hex(16)

    async def check_prompt(self, task: Task) -> None:
        """Raise `EvalError` if the upstream would have the model see other tokens than those of the recording."""
        recorded = self._candidates[task.digest, 0].prompt_ids
        payload = {"model": self._sampled.setup.model, "messages": list(task.messages), "add_generation_prompt": True}
        _, value = await self._sampled.upstream.request_json("POST", "/tokenize", payload)
        token_ids = value.get("tokens") if isinstance(value, dict) else None
        if token_ids is not None and tuple(token_ids) != recorded:
            raise EvalError(
                f"The upstream makes other tokens ({len(token_ids)}) of prompt {task.id} than the candidates were "
                f"sampled after ({len(recorded)}): its tokenizer or chat template is another. Sample candidates of its "
                "own: leave out --rescore."
            )

    async def rescore(self, job: Job) -> Recording:
        """Return the candidate with new scores, at each checkpoint and at its end. Raises `EngineError`.

        The engine is given the candidate once before it is asked for scores, as its own stream leaves it in the prefix
        cache: what a score then computes, and how long it takes, is what it would have cost beside the stream. A
        read-out at token t is in the logits that token t was drawn from, so it is read after t - 1 tokens; its cost is
        recorded as 0 tokens and next to no time, as in production it rides on the candidate's own stream.
        """
        found = self._candidates[job.task.digest, job.index]
        engine = self._sampled.engine(job.task, self._salt, found.prompt_ids)
        scorers = self._sampled.scorers_on(engine)
        partials = [found.beginning(tokens) for tokens in self._sampled.checkpoints if tokens < found.tokens]
        partials.append(replace(found.beginning(found.tokens), final=True))
        scored_at = time.time()
        if ScorerName.READ_OUT in self._sampled.scorers:
            partials = await self._with_readouts(engine, partials)
        elif ScorerName.SELF_EVALUATION in self._sampled.scorers:
            question = await self._sampled.tokens.of(self._sampled.setup.model)
            await engine.score([engine.prompt + found.token_ids[:-1]], question.labels.ids)
        scored: list[Scored] = []
        for partial in partials:
            scored.append(await score(scorers, partial, self._clock))
            if engine.broken is not None:
                # A candidate that is growing is lost with its connection; here the next attempt may have all scores.
                raise EngineFailed(engine.broken.message) from engine.broken
        return replace(
            found,
            key=job.key,
            setup=self._sampled.setup,
            checkpoints=self._sampled.checkpoints,
            scorers=tuple(self._sampled.scorers),
            scores=tuple(each for one in scored for each in one.scores),
            failures=tuple(each for one in scored for each in one.failures),
            scored_at=scored_at,
        )

    async def _with_readouts(self, engine: VllmEngine, partials: Sequence[Partial]) -> list[Partial]:
        """Return them with the read-out at their last token, where they have one."""
        sequences = [engine.prompt + partial.token_ids[:-1] for partial in partials]
        labels = self._sampled.read_out.ids
        # The longest first, alone: all others are beginnings of it, and then in the cache.
        *shorter, longest = sequences
        (last,) = await engine.score([longest], labels)
        others = await engine.score(shorter, labels) if shorter else ()
        return [
            replace(partial, readouts=(reading.logprobs,)) if partial.token_ids else partial
            for partial, reading in zip(partials, (*others, last), strict=True)
        ]
