"""`preamble eval`: samples what is not recorded yet, replays policies on what is, and reports."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
import uvloop
from rich.console import Console

from adaptive.clock import LoopClock
from adaptive.evaluation.recording import Recording, Setup, latest
from adaptive.evaluation.study import Design, study
from adaptive.evaluation.tasks import DataSet, Task, TaskError, load
from adaptive.policy import ScorerName
from server.eval_cache import RecordingFile
from server.eval_errors import EvalError
from server.eval_plot import draw
from server.eval_progress import Shown
from server.eval_prompts import recorded_prompts
from server.eval_report import Report, as_html, show
from server.eval_rescoring import Candidates, Rescorer, candidates_of
from server.eval_sampling import Sampled, Sampler, connect, jobs_of, record
from server.eval_upstream import client_of, upstream_for
from server.interrupts import sigterm_interrupts
from server.machine import this_machine
from server.settings import Settings
from server.terminal import say


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. dataset: a name or a path. limit: prompts, None for all. cache, out: None for the default.

    scorers: who judges, None for all that apply. thresholds: of adaptive sampling; none means at quantiles of what was
    scored. prefill_weight: see `study.Design`. rescore: recordings whose candidates are scored again, and none sampled.
    """

    dataset: str
    n: int
    limit: int | None
    max_tokens: int
    temperature: float
    seed: int
    concurrency: int
    checkpoints: tuple[int, ...]
    scorers: tuple[ScorerName, ...] | None
    thresholds: tuple[float, ...]
    prefill_weight: float
    cache: Path | None
    out: Path | None
    rescore: Path | None
    report_only: bool
    as_json: bool


def run_eval(settings: Settings, options: Options, *, out: Console, err: Console) -> None:
    """Sample, replay and report. Raises `EvalError`, and `EngineError` from the start of the embedded engine."""
    try:
        data = load(options.dataset)
    except TaskError as error:
        raise EvalError(str(error)) from error
    tasks = data.tasks[: options.limit]
    directory = options.out or Path("results") / f"eval-{data.name}"
    file = _read(options.cache or directory / "candidates.jsonl", err)
    if options.report_only:
        found = latest(file.recordings, settings.model)
        if found is None:
            raise EvalError(f"{file.path} has no candidates to report on. Sample some: leave out --report-only.")
        made = _Made(found.setup, options.scorers or tuple(map(ScorerName, found.scorers)))
    else:
        source = None if options.rescore is None else _source(options, tasks, err)
        with sigterm_interrupts(), upstream_for(settings, err) as upstream:
            made = _make(upstream, options, tasks, source, file, err)
    report = make_report(data, tasks, file, made.setup, made.scorers, options)
    _write(report, directory)
    if options.as_json:
        typer.echo(json.dumps(report.plain()))
        return
    show(report, out)
    say(out, f"\n{directory / 'report.html'}, quality.png and report.json beside it")


@dataclass(frozen=True, slots=True)
class _Made:
    """What recordings were made with, and who has judged them."""

    setup: Setup
    scorers: tuple[ScorerName, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """Candidates that are there, and the setup that sampled them."""

    candidates: Candidates
    sampled_by: Setup


def _read(path: Path, err: Console) -> RecordingFile:
    file = RecordingFile(path)
    if file.ignored:
        say(
            err,
            f"Ignored: {file.ignored} lines of {file.path} that cannot be read (a killed run tears its last one) or "
            "are of another version's format.",
        )
    return file


def _source(options: Options, tasks: Sequence[Task], err: Console) -> _Source:
    """Return the candidates that are to be scored. Raises `EvalError` without any."""
    assert options.rescore is not None  # noqa: S101 -- for the type checker
    file = _read(options.rescore, err)
    found = latest(file.recordings, None)
    if found is None:
        raise EvalError(
            f"{file.path} has no candidates that can be scored again. Sample some: `preamble eval` without --rescore "
            "keeps them in candidates.jsonl."
        )
    candidates = candidates_of(file.recordings, found.setup, tasks, options.n, options.seed)
    if not candidates:
        raise EvalError(
            f"{file.path} has no prompt of this data set with {options.n} candidates of {found.setup.model} and seed "
            f"{options.seed}. Give --n and --seed as they were when the candidates were sampled."
        )
    return _Source(candidates, found.setup.sampled_by or found.setup)


def make_report(
    data: DataSet,
    tasks: Sequence[Task],
    file: RecordingFile,
    setup: Setup,
    scorers: tuple[ScorerName, ...],
    options: Options,
) -> Report:
    """Return the report on what is recorded of these tasks. Raises `EvalError` where no prompt is complete."""
    prompts = recorded_prompts(
        tasks, file, setup, n=options.n, seed=options.seed, checkpoints=options.checkpoints, scorers=scorers
    )
    design = Design(
        n=options.n,
        checkpoints=options.checkpoints,
        max_tokens=setup.max_tokens,
        scorers=scorers,
        thresholds=options.thresholds,
        prefill_weight=options.prefill_weight,
    )
    recordings = [recording for prompt in prompts for recording in prompt.candidates]
    return Report(
        dataset=data.name,
        about=data.about,
        asked_prompts=len(tasks),
        incomplete=len(tasks) - len(prompts),
        setup=setup,
        seed=options.seed,
        study=study(prompts, design, min_label_mass=setup.min_label_mass),
        candidates=len(recordings),
        tokens=sum(recording.tokens for recording in recordings),
        cut=sum(recording.finish_reason == "length" for recording in recordings),
        failures=sum(len(recording.failures) for recording in recordings),
        sampled_from=min(recording.sampled_at for recording in recordings),
        sampled_to=max(recording.sampled_at for recording in recordings),
        prompts_digest=_digest(recording.prompt for recording in recordings),
        candidates_digest=_digest(f"{each.prompt} {each.index} {each.token_ids}" for each in recordings),
        machine=this_machine(),
    )


def _digest(texts: Iterable[str]) -> str:
    """Return what tells a set of texts from any other."""
    return hashlib.blake2b(json.dumps(sorted(set(texts))).encode(), digest_size=16).hexdigest()


def _write(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    picture = draw(report)
    (directory / "quality.png").write_bytes(picture)
    (directory / "report.html").write_text(as_html(report, picture), encoding="utf-8")
    (directory / "report.json").write_text(json.dumps(report.plain(), indent=1) + "\n", encoding="utf-8")


def _make(
    settings: Settings,
    options: Options,
    tasks: Sequence[Task],
    source: _Source | None,
    file: RecordingFile,
    err: Console,
) -> _Made:
    """Sample, or score, what the file does not have. What is there stays there, whatever happens."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_make_missing(settings, options, tasks, source, file, err))
        except (KeyboardInterrupt, EvalError):
            if file.recordings:
                say(
                    err,
                    f"{len(file.recordings)} candidates are kept in {file.path}; the same command goes on from there.",
                )
            raise


async def _make_missing(
    settings: Settings,
    options: Options,
    tasks: Sequence[Task],
    source: _Source | None,
    file: RecordingFile,
    err: Console,
) -> _Made:
    # A candidate has its stream and its scores open at once.
    client = client_of(settings, max(16, 3 * options.concurrency))
    sampled_by = None if source is None else source.sampled_by
    try:
        sampled = await connect(
            client,
            settings.model,
            temperature=options.temperature if sampled_by is None else sampled_by.temperature,
            max_tokens=options.max_tokens if sampled_by is None else sampled_by.max_tokens,
            checkpoints=options.checkpoints,
            scorers=options.scorers,
            self_evaluation=settings.self_evaluation,
            sampled_by=sampled_by,
        )
        await _record_missing(sampled, options, tasks, source, file, err)
        return _Made(sampled.setup, sampled.scorers)
    finally:
        await client.aclose()


async def _record_missing(
    sampled: Sampled,
    options: Options,
    tasks: Sequence[Task],
    source: _Source | None,
    file: RecordingFile,
    err: Console,
) -> None:
    jobs = jobs_of(tasks, options.n, options.seed, sampled.setup)
    if source is not None:
        jobs = [job for job in jobs if (job.task.digest, job.index) in source.candidates]
    missing = [job for job in jobs if not file.has(job.key, sampled.checkpoints, sampled.scorers)]
    if not missing:
        return
    clock = LoopClock()
    what = f"{len(missing)} of {len(jobs)} candidates"
    if source is None:
        make = Sampler(sampled, clock).sample
        say(err, f"Sampling {what} from {sampled.setup.model}; into {file.path}")
    else:
        rescorer = Rescorer(sampled, source.candidates, clock)
        await rescorer.check_prompt(missing[0].task)
        make = rescorer.rescore
        say(err, f"Scoring {what} of {options.rescore} by {sampled.setup.model}; into {file.path}")
    with file, Shown(err, "candidates", len(jobs), len(jobs) - len(missing)) as shown:

        def keep(recording: Recording) -> None:
            file.add(recording)
            shown.kept(recording.tokens)

        await record(make, missing, clock=clock, concurrency=options.concurrency, keep=keep, lose=shown.lost)
