"""Sampling for `preamble eval`: candidates over the real upstream, each generated to its end and scored on its way.

Engine and scorers are those of the proxy (`VllmEngine`, `ChatSelfEvaluation`), so what is recorded is what the product
would have seen. Nothing is decided here: every candidate runs to its end, and policies are replayed afterwards.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from adaptive.candidate import Candidate, Partial
from adaptive.clock import Clock
from adaptive.engine import EngineBusy, EngineError, EngineRejected, Sampling, TokenIds
from adaptive.evaluation.recording import (
    LOGPROB_DECIMALS,
    RecordedScore,
    Recording,
    Setup,
    question_digest,
    seed_of,
)
from adaptive.evaluation.strategies import SCORERS
from adaptive.evaluation.tasks import Task
from adaptive.policy import ScorerName
from adaptive.scoring import (
    GroupConfidenceScorer,
    Labels,
    MeanLogProbabilityScorer,
    ReadOutScorer,
    Score,
    Scorer,
    ScoringFailed,
)
from server.errors import UpstreamUnavailable
from server.eval_errors import EvalError
from server.probe import Scoring, UpstreamModel, UpstreamProfile, probe
from server.self_evaluation_config import SelfEvaluationConfig, SelfEvaluationConfigError, in_force, read_config
from server.self_evaluation_tokens import QuestionTokens, SelfEvaluationTokens
from server.upstream import UpstreamClient
from server.vllm_engine import PATH, ChatRequest, ChatSelfEvaluation, VllmEngine

# A candidate that fails is tried again; one that the upstream is too busy for waits for longer and longer.
_ATTEMPTS: Final = 3
_BUSY_ATTEMPTS: Final = 8
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 15.0
_OK: Final = 200

T = TypeVar("T")
Item = TypeVar("Item")

_NO_READ_OUT: Final = (
    "read_out needs a model that was trained for it, and of {} no labels are known: leave it, and staged, out of "
    "--scorers, or name the checkpoint's own configuration in self_evaluation."
)
_NO_ALTERNATIVES: Final = (
    "group_confidence reads the alternatives of every token, which recordings do not keep: leave it out of --scorers."
)
_NOT_BOTH: Final = (
    "group_confidence and read_out cannot ride on the same tokens: vLLM reports the alternatives or the labels. Leave "
    "one of them out of --scorers."
)


@dataclass(frozen=True, slots=True)
class Job:
    """A candidate to be sampled."""

    task: Task
    index: int
    seed: int
    key: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """The upstream, the model on it, and what is asked of them. profile: as probed. scorers: who judges."""

    upstream: UpstreamClient
    profile: UpstreamProfile
    max_model_len: int | None
    tokens: SelfEvaluationTokens
    setup: Setup
    checkpoints: tuple[int, ...]
    scorers: tuple[ScorerName, ...]

    def engine(self, task: Task, salt: str, prompt: TokenIds = ()) -> VllmEngine:
        """Return an engine for that prompt. salt: of the cache that it shares. prompt: its ids, if known."""
        body = {"model": self.setup.model, "messages": list(task.messages), "cache_salt": salt}
        request = ChatRequest(
            body=body,
            headers=(),
            upstream_id=f"eval-{secrets.token_hex(8)}",
            max_tokens=self.setup.max_tokens,
            own_temperature=True,
        )
        scoring = self.profile.scoring or Scoring.LOGPROB_TOKEN_IDS
        return VllmEngine(self.upstream, request, scoring, self.max_model_len, prompt=prompt)

    def scorers_on(self, engine: VllmEngine) -> tuple[Scorer, ...]:
        """Return who judges the candidates of that engine."""
        made: list[Scorer] = []
        for name in self.scorers:
            match name:
                case ScorerName.SELF_EVALUATION:
                    made.append(ChatSelfEvaluation(engine, self.tokens, min_label_mass=0.0))
                case ScorerName.READ_OUT:
                    made.append(ReadOutScorer(self.read_out, self.tokens.read_out_calibration(self.setup.model)))
                case ScorerName.MEAN_LOG_PROBABILITY:
                    made.append(MeanLogProbabilityScorer())
                case ScorerName.GROUP_CONFIDENCE:
                    made.append(GroupConfidenceScorer())
        return tuple(made)

    @property
    def read_out(self) -> Labels:
        """The labels of the read-out. Raises `EvalError` for a model without."""
        labels = self.tokens.read_out(self.setup.model)
        if labels is None:
            raise EvalError(_NO_READ_OUT.format(self.setup.model))
        return labels


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
    scorers: tuple[ScorerName, ...] | None = None,
    self_evaluation: Path | None = None,
    sampled_by: Setup | None = None,
) -> Sampled:
    """Return the upstream with the model of that name, or its first.

    scorers: who judges, None for all that apply. self_evaluation: the setting. sampled_by: the setup whose candidates
    are to be scored, None where they are sampled. Raises `EvalError` where it cannot be sampled, for a wrong
    configuration, and for scorers that do not apply.
    """
    profile, served = await served_by(upstream, model)
    try:
        config = in_force(None if self_evaluation is None else read_config(self_evaluation), served)
    except SelfEvaluationConfigError as error:
        raise EvalError(str(error)) from error
    judges = _applying(scorers, served.name, read_out=config.read_out is not None, rescoring=sampled_by is not None)
    tokens = SelfEvaluationTokens(upstream, upstream_now=lambda: profile, config_of=lambda _: config)
    question = None
    try:
        question = await tokens.of(served.name)
    except ScoringFailed as error:
        if ScorerName.SELF_EVALUATION in judges:
            raise EvalError(f"{served.name} cannot be asked for self-evaluation: {error}.") from error
    setup = Setup(
        model=served.name,
        root=await root_of(upstream, served.name),
        fingerprint=await fingerprint_of(upstream, served.name),
        question=_digest(question, config),
        temperature=temperature,
        max_tokens=max_tokens,
        sampled_by=sampled_by,
        min_label_mass=config.min_label_mass,
    )
    return Sampled(upstream, profile, served.max_model_len, tokens, setup, checkpoints, judges)


async def served_by(upstream: UpstreamClient, model: str | None) -> tuple[UpstreamProfile, UpstreamModel]:
    """Return what is known of the upstream and its model of that name, or its first. Raises `EvalError`."""
    profile = await probe(upstream)
    if not profile.reachable:
        raise EvalError(f"No upstream answers at {upstream.base_url}. `preamble doctor` may tell why.")
    if not profile.models:
        status = profile.models_status
        raise EvalError(f"The upstream lists no model (status {status}). Is upstream_api_key the key of this vLLM?")
    served = next((each for each in profile.models if model in {None, each.name}), None)
    if served is None:
        raise EvalError(f"The upstream does not serve {model!r}; it serves {', '.join(profile.model_names)}.")
    return profile, served


def _applying(
    asked: tuple[ScorerName, ...] | None, model: str, *, read_out: bool, rescoring: bool
) -> tuple[ScorerName, ...]:
    """Return who judges. vLLM reports either alternatives of a token or the labels of a read-out, not both."""
    reasons: dict[ScorerName, str] = {}
    if not read_out:
        reasons[ScorerName.READ_OUT] = _NO_READ_OUT.format(model)
    if rescoring:
        reasons[ScorerName.GROUP_CONFIDENCE] = _NO_ALTERNATIVES
    elif read_out and (asked is None or ScorerName.READ_OUT in asked):
        reasons[ScorerName.GROUP_CONFIDENCE] = _NOT_BOTH
    if asked is None:
        return tuple(each for each in SCORERS if each not in reasons)
    for each in asked:
        if each in reasons:
            raise EvalError(reasons[each])
    return tuple(each for each in SCORERS if each in asked)


def _digest(question: QuestionTokens | None, config: SelfEvaluationConfig) -> str:
    """Return what tells the self-evaluation in force from any other: the question, the read-out, their calibration."""
    # Scores are recorded however little the labels get.
    more = json.dumps(asdict(replace(config, file=None, min_label_mass=0.0)), sort_keys=True)
    if question is None:
        return question_digest((), (), more)
    return question_digest(question.suffix, question.labels.ids, more)


async def record(
    make: Callable[[Job], Awaitable[Recording]],
    jobs: Sequence[Job],
    *,
    clock: Clock,
    concurrency: int,
    keep: Callable[[Recording], None],
    lose: Callable[[str], None],
) -> None:
    """Make the recordings, that many at a time; `keep` is given each when it is there, `lose` why one is not.

    make: raises `EngineError`; it is tried again as `persistently` does. Raises `EvalError` when the upstream is
    gone. Cancelling it aborts every candidate upstream.
    """

    async def work(job: Job) -> None:
        try:
            keep(await persistently(partial(make, job), clock))
        except EngineError as error:
            if isinstance(error.__cause__, UpstreamUnavailable):
                raise EvalError(f"The upstream is gone: {error}") from error
            lose(f"candidate {job.index} of {job.task.id}: {error}")

    await in_parallel(work, jobs, concurrency)


async def in_parallel(work: Callable[[Item], Awaitable[None]], items: Sequence[Item], concurrency: int) -> None:
    """Work on each item, that many at a time, in their order. What one raises ends all; so does being cancelled."""

    async def take() -> None:
        for item in waiting:
            await work(item)

    waiting = iter(items)
    workers = [asyncio.create_task(take()) for _ in range(min(concurrency, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def persistently(attempt: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Return what comes of the attempt. One that fails is made again; one that meets a busy upstream waits longer.

    Raises the `EngineError` of the last attempt; a request that was rejected would only be rejected again.
    """
    attempts, wait_s = 0, _FIRST_WAIT_S
    while True:
        attempts += 1
        try:
            return await attempt()
        except EngineRejected:
            raise
        except EngineError as error:
            if attempts >= (_BUSY_ATTEMPTS if isinstance(error, EngineBusy) else _ATTEMPTS):
                raise
        await clock.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one partial response, and why others could not be had."""

    scores: tuple[RecordedScore, ...]
    failures: tuple[str, ...]


async def score(scorers: Sequence[Scorer], partial: Partial, clock: Clock) -> Scored:
    """Return what these scorers say of it, one after the other. An engine that is busy is asked again."""
    scores, failures = [], []
    tokens = len(partial.token_ids)
    for scorer in scorers:
        asked = clock.now()
        try:
            (found,) = await _patiently(scorer, partial, clock)
        except ScoringFailed as error:
            failures.append(f"{scorer.name} at {tokens} tokens: {error}")
            continue
        took_s = round(clock.now() - asked, 6)
        scores.append(
            RecordedScore(
                scorer.name, tokens, partial.final, found.value, found.label_mass, found.computed_tokens, took_s
            )
        )
    return Scored(tuple(scores), tuple(failures))


async def _patiently(scorer: Scorer, partial: Partial, clock: Clock) -> tuple[Score, ...]:
    wait_s = _FIRST_WAIT_S
    for _ in range(_BUSY_ATTEMPTS):
        try:
            return await scorer.score([partial])
        except ScoringFailed as error:
            if not error.engine_busy:
                raise
        await clock.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    return await scorer.score([partial])


class Sampler:
    """Samples candidates. clock: what their times are measured with."""

    def __init__(self, sampled: Sampled, clock: Clock) -> None:
        self._sampled = sampled
        self._clock = clock
        self._engines: dict[str, VllmEngine] = {}
        # Fresh for every run: what an earlier one has left in the prefix cache would make scores look cheaper.
        self._salt = secrets.token_hex(16)

    async def sample(self, job: Job) -> Recording:
        """Return one candidate, scored at each checkpoint while it goes on, and at its end. Raises `EngineError`."""
        engine, setup = self._engine(job.task), self._sampled.setup
        scorers = self._sampled.scorers_on(engine)
        sampling = Sampling(
            job.index,
            setup.temperature,
            job.seed,
            setup.max_tokens,
            # Those of the tokens themselves are recorded, whoever judges.
            top_logprobs=max((each.top_logprobs or 0 for each in scorers), default=0),
            readout_ids=tuple(label for each in scorers for label in each.readout_ids),
        )
        started, sampled_at = self._clock.now(), time.time()
        candidate = Candidate(job.index, 0, sampling, drawn_s=0.0)
        ahead = list(self._sampled.checkpoints)
        scoring: list[asyncio.Task[Scored]] = []
        try:
            async with aclosing(engine.generate((), sampling)) as stream:
                async for step in stream:
                    candidate.grow(step, self._clock.now() - started)
                    candidate.finish_reason = step.finish_reason
                    while ahead and _passed(candidate, ahead[0]):
                        beginning = candidate.beginning(ahead.pop(0))
                        scoring.append(asyncio.create_task(score(scorers, beginning, self._clock)))
            took_s = self._clock.now() - started
            whole = replace(candidate.beginning(candidate.token_count), final=True)
            scoring.append(asyncio.create_task(score(scorers, whole, self._clock)))
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
            scorers=tuple(self._sampled.scorers),
            text=candidate.text,
            prompt_ids=engine.prompt,
            token_ids=whole.token_ids,
            logprobs=tuple(round(each, LOGPROB_DECIMALS) for each in whole.logprobs),
            finish_reason=candidate.finish_reason or "",
            scores=tuple(found for each in scored for found in each.scores),
            failures=tuple(failure for each in scored for failure in each.failures),
            first_token_s=candidate.first_token_s,
            took_s=took_s,
            sampled_at=sampled_at,
            scored_at=sampled_at,
        )

    def _engine(self, task: Task) -> VllmEngine:
        """Return the engine of a prompt: its candidates share what was learnt of the prompt's tokens."""
        engine = self._engines.get(task.id)
        if engine is None:
            engine = self._engines[task.id] = self._sampled.engine(task, self._salt)
        return engine


def _passed(candidate: Candidate, checkpoint: int) -> bool:
    """Return True when it has that many tokens and more to come, or more than that many."""
    if candidate.finish_reason is None:
        return candidate.token_count >= checkpoint
    return candidate.token_count > checkpoint


async def root_of(upstream: UpstreamClient, model: str) -> str | None:
    """Return where the weights are from, as the upstream says."""
    _, value = await upstream.request_json("GET", "/v1/models")
    rows = value.get("data", []) if isinstance(value, dict) else []
    root = next((row.get("root") for row in rows if row.get("id") == model), None)
    return root if isinstance(root, str) else None


async def fingerprint_of(upstream: UpstreamClient, model: str) -> str | None:
    """Return the upstream's name for itself and its configuration, from the shortest chat that there is."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    status, value = await upstream.request_json("POST", PATH, body)
    fingerprint = value.get("system_fingerprint") if status == _OK and isinstance(value, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None
