"""Sampling for `preamble eval`: candidates over the real upstream, each generated to its end and scored on its way.

Engine and scorers are those of the proxy (`VllmEngine`, `ChatSelfEvaluation`), so what is recorded is what the product
would have seen. Nothing is decided here: every candidate runs to its end, and policies are replayed afterwards.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adaptive.candidate import Candidate, Partial
from adaptive.clock import Clock
from adaptive.engine import EngineBusy, EngineError, Sampling
from adaptive.evaluation.recording import RecordedScore, Recording, Setup, question_digest, seed_of
from adaptive.evaluation.tasks import Task
from adaptive.scoring import GroupConfidenceScorer, MeanLogProbabilityScorer, Scorer, ScoringFailed
from server.errors import UpstreamUnavailable
from server.probe import Scoring, UpstreamProfile, probe
from server.self_evaluation_config import SelfEvaluationConfigError, in_force, read_config
from server.self_evaluation_tokens import SelfEvaluationTokens
from server.upstream import UpstreamClient
from server.vllm_engine import PATH, ChatRequest, ChatSelfEvaluation, VllmEngine

# A candidate that fails is tried again; one that the upstream is too busy for waits for longer and longer.
_ATTEMPTS: Final = 3
_BUSY_ATTEMPTS: Final = 8
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 15.0
_OK: Final = 200


class EvalError(Exception):
    """An evaluation could not be made, or not go on. The message says why and what to do about it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A candidate to be sampled."""

    task: Task
    index: int
    seed: int
    key: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """The upstream, the model on it, and what is asked of them. profile: as probed."""

    upstream: UpstreamClient
    profile: UpstreamProfile
    max_model_len: int | None
    tokens: SelfEvaluationTokens
    setup: Setup
    checkpoints: tuple[int, ...]


def jobs_of(tasks: Sequence[Task], n: int, seed: int, setup: Setup) -> list[Job]:
    """Return the candidates that a run consists of, prompt by prompt."""
    jobs = []
    for task in tasks:
        digest = task.digest
        for index in range(n):
            of_candidate = seed_of(seed, digest, index)
            jobs.append(Job(task, index, of_candidate, setup.key(digest, of_candidate)))
    return jobs


async def connect(
    upstream: UpstreamClient,
    model: str | None,
    *,
    temperature: float,
    max_tokens: int,
    checkpoints: tuple[int, ...],
    self_evaluation: Path | None = None,
) -> Sampled:
    """Return the upstream with the model of that name, or its first.

    self_evaluation: the setting. Raises `EvalError` where it cannot be sampled, and for a wrong configuration.
    """
    profile = await probe(upstream)
    if not profile.reachable:
        raise EvalError(f"No upstream answers at {upstream.base_url}. `preamble doctor` may tell why.")
    if not profile.models:
        status = profile.models_status
        raise EvalError(f"The upstream lists no model (status {status}). Is upstream_api_key the key of this vLLM?")
    served = next((each for each in profile.models if model in {None, each.name}), None)
    if served is None:
        raise EvalError(f"The upstream does not serve {model!r}; it serves {', '.join(profile.model_names)}.")
    try:
        config = in_force(None if self_evaluation is None else read_config(self_evaluation), served)
    except SelfEvaluationConfigError as error:
        raise EvalError(str(error)) from error
    tokens = SelfEvaluationTokens(upstream, upstream_now=lambda: profile, config_of=lambda _: config)
    try:
        question = await tokens.of(served.name)
    except ScoringFailed as error:
        raise EvalError(f"{served.name} cannot be asked for self-evaluation: {error}.") from error
    setup = Setup(
        model=served.name,
        root=await _root(upstream, served.name),
        fingerprint=await _fingerprint(upstream, served.name),
        question=question_digest(
            question.suffix,
            question.labels.ids,
            None if question.calibration is None else question.calibration.to_plain(),
        ),
        temperature=temperature,
        max_tokens=max_tokens,
    )
    return Sampled(upstream, profile, served.max_model_len, tokens, setup, checkpoints)


class Sampler:
    """Samples candidates. clock: what their times are measured with."""

    def __init__(self, sampled: Sampled, clock: Clock) -> None:
        self._sampled = sampled
        self._clock = clock
        self._engines: dict[str, VllmEngine] = {}
        # Fresh for every run: what an earlier one has left in the prefix cache would make scores look cheaper.
        self._salt = secrets.token_hex(16)

    async def record(
        self, jobs: Sequence[Job], *, concurrency: int, keep: Callable[[Recording], None], lose: Callable[[str], None]
    ) -> None:
        """Sample the candidates, that many at a time; `keep` is given each when it is there, `lose` why one is not.

        Raises `EvalError` when the upstream is gone. Cancelling it aborts every candidate upstream.
        """
        waiting = iter(jobs)
        workers = [asyncio.create_task(self._work(waiting, keep, lose)) for _ in range(min(concurrency, len(jobs)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, jobs: Iterator[Job], keep: Callable[[Recording], None], lose: Callable[[str], None]) -> None:
        for job in jobs:
            try:
                keep(await self._persistently(job))
            except EngineError as error:
                if isinstance(error.__cause__, UpstreamUnavailable):
                    raise EvalError(f"The upstream is gone: {error}") from error
                lose(f"candidate {job.index} of {job.task.id}: {error}")

    async def _persistently(self, job: Job) -> Recording:
        attempts, wait_s = 0, _FIRST_WAIT_S
        while True:
            attempts += 1
            try:
                return await self.sample(job)
            except EngineError as error:
                if attempts >= (_BUSY_ATTEMPTS if isinstance(error, EngineBusy) else _ATTEMPTS):
                    raise
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def sample(self, job: Job) -> Recording:
        """Return one candidate, scored at each checkpoint while it goes on, and at its end. Raises `EngineError`."""
        engine, setup = self._engine(job.task), self._sampled.setup
        scorers: tuple[Scorer, ...] = (
            ChatSelfEvaluation(engine, self._sampled.tokens, min_label_mass=0.0),
            MeanLogProbabilityScorer(),
            GroupConfidenceScorer(),
        )
        alternatives = max(each.top_logprobs for each in scorers if each.top_logprobs is not None)
        sampling = Sampling(job.index, setup.temperature, job.seed, setup.max_tokens, top_logprobs=alternatives)
        started, sampled_at = self._clock.now(), time.time()
        candidate = Candidate(job.index, 0, sampling, drawn_s=0.0)
        ahead = list(self._sampled.checkpoints)
        scoring: list[asyncio.Task[_Scored]] = []
        try:
            async with aclosing(engine.generate((), sampling)) as stream:
                async for step in stream:
                    candidate.grow(step, self._clock.now() - started)
                    candidate.finish_reason = step.finish_reason
                    while ahead and _passed(candidate, ahead[0]):
                        partial = candidate.beginning(ahead[0])
                        scoring.append(asyncio.create_task(self._score(scorers, partial, ahead.pop(0), final=False)))
            took_s = self._clock.now() - started
            whole = candidate.beginning(candidate.token_count)
            scoring.append(asyncio.create_task(self._score(scorers, whole, candidate.token_count, final=True)))
            scored = await asyncio.gather(*scoring)
        finally:
            for task in scoring:
                task.cancel()
        return Recording(
            key=job.key,
            task=job.task.id,
            prompt=job.task.digest,
            index=job.index,
            seed=job.seed,
            setup=setup,
            checkpoints=self._sampled.checkpoints,
            text=candidate.text,
            tokens=candidate.token_count,
            prompt_tokens=len(engine.prompt),
            finish_reason=candidate.finish_reason or "",
            scores=tuple(score for each in scored for score in each.scores),
            failures=tuple(failure for each in scored for failure in each.failures),
            first_token_s=candidate.first_token_s,
            took_s=took_s,
            sampled_at=sampled_at,
        )

    async def _score(self, scorers: Sequence[Scorer], partial: Partial, tokens: int, *, final: bool) -> _Scored:
        scores, failures = [], []
        for scorer in scorers:
            asked = self._clock.now()
            try:
                (score,) = await self._patiently(scorer, partial)
            except ScoringFailed as error:
                failures.append(f"{scorer.name} at {tokens} tokens: {error}")
                continue
            took_s = self._clock.now() - asked
            computed = score.computed_tokens
            scores.append(
                RecordedScore(scorer.name, tokens, final, score.value, score.label_mass, computed, round(took_s, 6))
            )
        return _Scored(tuple(scores), tuple(failures))

    async def _patiently(self, scorer: Scorer, partial: Partial) -> tuple[Any, ...]:
        wait_s = _FIRST_WAIT_S
        for _ in range(_BUSY_ATTEMPTS):
            try:
                return await scorer.score([partial])
            except ScoringFailed as error:
                if not error.engine_busy:
                    raise
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        return await scorer.score([partial])

    def _engine(self, task: Task) -> VllmEngine:
        """Return the engine of a prompt: its candidates share what was learnt of the prompt's tokens."""
        engine = self._engines.get(task.id)
        if engine is None:
            setup = self._sampled.setup
            body = {"model": setup.model, "messages": list(task.messages), "cache_salt": self._salt}
            request = ChatRequest(
                body=body,
                headers=(),
                upstream_id=f"eval-{secrets.token_hex(8)}",
                max_tokens=setup.max_tokens,
                own_temperature=True,
            )
            scoring = self._sampled.profile.scoring or Scoring.LOGPROB_TOKEN_IDS
            engine = VllmEngine(self._sampled.upstream, request, scoring, self._sampled.max_model_len)
            self._engines[task.id] = engine
        return engine


@dataclass(frozen=True, slots=True)
class _Scored:
    scores: tuple[RecordedScore, ...]
    failures: tuple[str, ...]


def _passed(candidate: Candidate, checkpoint: int) -> bool:
    """Return True when it has that many tokens and more to come, or more than that many."""
    if candidate.finish_reason is None:
        return candidate.token_count >= checkpoint
    return candidate.token_count > checkpoint


async def _root(upstream: UpstreamClient, model: str) -> str | None:
    """Return where the weights are from, as the upstream says."""
    _, value = await upstream.request_json("GET", "/v1/models")
    rows = value.get("data", []) if isinstance(value, dict) else []
    root = next((row.get("root") for row in rows if row.get("id") == model), None)
    return root if isinstance(root, str) else None


async def _fingerprint(upstream: UpstreamClient, model: str) -> str | None:
    """Return the upstream's name for itself and its configuration, from the shortest chat that there is."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    status, value = await upstream.request_json("POST", PATH, body)
    fingerprint = value.get("system_fingerprint") if status == _OK and isinstance(value, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None
