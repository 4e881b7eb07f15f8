"""`preamble eval`: samples what is not recorded yet, replays policies on what is, and reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
import uvloop
from rich.console import Console

from adaptive.clock import LoopClock
from adaptive.evaluation.recording import Recording, Setup, latest_setup
from adaptive.evaluation.study import Design, Prompt, study
from adaptive.evaluation.tasks import DataSet, Task, TaskError, load
from adaptive.scoring import MIN_LABEL_MASS
from server.eval_cache import RecordingFile
from server.eval_plot import draw
from server.eval_progress import Shown
from server.eval_report import Report, as_html, show
from server.eval_sampling import EvalError, Job, Sampler, connect, jobs_of
from server.eval_upstream import client_of, upstream_for
from server.interrupts import sigterm_interrupts
from server.machine import this_machine
from server.settings import Settings
from server.terminal import say


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. dataset: a name or a path. limit: prompts, None for all. cache, out: None for the default.

    thresholds: of adaptive sampling; none means at quantiles of what was scored. prefill_weight: see `study.Design`.
    """

    dataset: str
    n: int
    limit: int | None
    max_tokens: int
    temperature: float
    seed: int
    concurrency: int
    checkpoints: tuple[int, ...]
    thresholds: tuple[float, ...]
    prefill_weight: float
    cache: Path | None
    out: Path | None
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
    file = RecordingFile(options.cache or directory / "candidates.jsonl")
    if file.ignored:
        say(err, f"Ignored: {file.ignored} lines of {file.path} that cannot be read (a killed run tears its last one).")
    if options.report_only:
        setup = latest_setup(file.recordings, settings.model)
        if setup is None:
            raise EvalError(f"{file.path} has no candidates to report on. Sample some: leave out --report-only.")
    else:
        with sigterm_interrupts(), upstream_for(settings, err) as upstream:
            setup = _sample(upstream, options, tasks, file, err)
    report = make_report(data, tasks, file, setup, options)
    _write(report, directory)
    if options.as_json:
        typer.echo(json.dumps(report.plain()))
        return
    show(report, out)
    say(out, f"\n{directory / 'report.html'}, quality.png and report.json beside it")


def make_report(data: DataSet, tasks: Sequence[Task], file: RecordingFile, setup: Setup, options: Options) -> Report:
    """Return the report on what is recorded of these tasks. Raises `EvalError` where no prompt is complete."""
    prompts = []
    for task in tasks:
        jobs = jobs_of([task], options.n, options.seed, setup)
        recordings = [file.recordings[job.key] for job in jobs if file.has(job.key, options.checkpoints)]
        if len(recordings) == options.n:
            verdicts = tuple(task.verify(recording.text) for recording in recordings)
            prompts.append(Prompt(task.id, tuple(recordings), verdicts))
    if not prompts:
        raise EvalError(
            f"{file.path} has no prompt with {options.n} candidates of {setup.model} at temperature "
            f"{setup.temperature:g}, {setup.max_tokens} tokens, seed {options.seed} and these checkpoints."
        )
    design = Design(
        n=options.n,
        checkpoints=options.checkpoints,
        max_tokens=setup.max_tokens,
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
        study=study(prompts, design, min_label_mass=MIN_LABEL_MASS),
        candidates=len(recordings),
        tokens=sum(recording.tokens for recording in recordings),
        cut=sum(recording.finish_reason == "length" for recording in recordings),
        failures=sum(len(recording.failures) for recording in recordings),
        sampled_from=min(recording.sampled_at for recording in recordings),
        sampled_to=max(recording.sampled_at for recording in recordings),
        machine=this_machine(),
    )


def _write(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    picture = draw(report)
    (directory / "quality.png").write_bytes(picture)
    (directory / "report.html").write_text(as_html(report, picture), encoding="utf-8")
    (directory / "report.json").write_text(json.dumps(report.plain(), indent=1) + "\n", encoding="utf-8")


def _sample(settings: Settings, options: Options, tasks: Sequence[Task], file: RecordingFile, err: Console) -> Setup:
    """Sample what the file does not have; return the setup. What is there stays there, whatever happens."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_sample_missing(settings, options, tasks, file, err))
        except (KeyboardInterrupt, EvalError):
            if file.recordings:
                say(
                    err,
                    f"{len(file.recordings)} candidates are kept in {file.path}; the same command goes on from there.",
                )
            raise


async def _sample_missing(
    settings: Settings, options: Options, tasks: Sequence[Task], file: RecordingFile, err: Console
) -> Setup:
    # A candidate has its stream and its scores open at once.
    client = client_of(settings, max(16, 3 * options.concurrency))
    try:
        sampled = await connect(
            client,
            settings.model,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            checkpoints=options.checkpoints,
            self_evaluation=settings.self_evaluation,
        )
        jobs = jobs_of(tasks, options.n, options.seed, sampled.setup)
        missing = [job for job in jobs if not file.has(job.key, options.checkpoints)]
        if missing:
            say(err, f"Sampling {len(missing)} of {len(jobs)} candidates from {sampled.setup.model}; into {file.path}")
            with file, Shown(err, "candidates", len(jobs), len(jobs) - len(missing)) as shown:
                await _record(Sampler(sampled, LoopClock()), missing, options, file, shown)
        return sampled.setup
    finally:
        await client.aclose()


async def _record(sampler: Sampler, jobs: Sequence[Job], options: Options, file: RecordingFile, shown: Shown) -> None:
    def keep(recording: Recording) -> None:
        file.add(recording)
        shown.kept(recording.tokens)

    await sampler.record(jobs, concurrency=options.concurrency, keep=keep, lose=shown.lost)
