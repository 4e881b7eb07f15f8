"""`preamble eval`: samples what is not recorded yet, replays policies on what is, and reports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import typer
import uvloop
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adaptive.clock import LoopClock
from adaptive.evaluation.recording import Recording, Setup, latest_setup
from adaptive.evaluation.study import Design, study
from adaptive.evaluation.tasks import DataSet, Task, TaskError, load
from adaptive.scoring import MIN_LABEL_MASS
from server.engine import EmbeddedEngine
from server.eval_cache import RecordingFile
from server.eval_plot import draw
from server.eval_prompts import recorded_prompts
from server.eval_report import Report, as_html, show
from server.eval_sampling import EvalError, Job, Sampler, connect, jobs_of
from server.interrupts import sigterm_interrupts
from server.machine import this_machine
from server.self_evaluation_config import FILE
from server.settings import Settings
from server.terminal import say, shown_progress
from server.upstream import Timeouts, UpstreamClient

# Where there is no terminal to keep a line current on.
_LOG_EVERY_S: Final = 60.0


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
        with sigterm_interrupts(), _upstream(settings, err) as upstream:
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
    prompts = recorded_prompts(tasks, file, setup, n=options.n, seed=options.seed, checkpoints=options.checkpoints)
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


@contextlib.contextmanager
def _upstream(settings: Settings, err: Console) -> Iterator[Settings]:
    """Give settings with an upstream: the one they name, or the embedded engine for as long as the context lasts."""
    if settings.upstream is not None:
        yield settings
        return
    with shown_progress(err) as progress:
        engine = EmbeddedEngine.from_settings(settings)
        upstream = engine.start(progress)
    try:
        key = SecretStr(upstream.api_key)
        started = {"upstream": upstream.base_url, "upstream_api_key": key, "model": None}
        beside = None if settings.model is None else Path(settings.model)
        if settings.self_evaluation is None and beside is not None and (beside / FILE).is_file():
            started["self_evaluation"] = beside  # a relative path, which `/v1/models` gives too, is ours to read here
        yield settings.model_copy(update=started)
    finally:
        engine.stop()


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
    assert settings.upstream is not None  # noqa: S101 -- for the type checker: see `_upstream`
    key = settings.upstream_api_key
    client = UpstreamClient(
        settings.upstream,
        api_key=None if key is None else key.get_secret_value(),
        # A candidate has its stream and its scores open at once.
        max_connections=max(16, 3 * options.concurrency),
        timeouts=Timeouts(
            settings.connect_timeout_s,
            settings.first_token_timeout_s,
            settings.stall_timeout_s,
            settings.total_timeout_s,
        ),
    )
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
            with file, _Shown(err, len(jobs), len(jobs) - len(missing)) as shown:
                await _record(Sampler(sampled, LoopClock()), missing, options, file, shown)
        return sampled.setup
    finally:
        await client.aclose()


async def _record(sampler: Sampler, jobs: Sequence[Job], options: Options, file: RecordingFile, shown: _Shown) -> None:
    def keep(recording: Recording) -> None:
        file.add(recording)
        shown.kept(recording)

    await sampler.record(jobs, concurrency=options.concurrency, keep=keep, lose=shown.lost)


class _Shown:
    """The progress of sampling: a bar with the time that is left, or a line a minute where there is no terminal."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total, self._done, self._before = total, done, done
        self._tokens = 0
        self._started = self._told = time.monotonic()
        self._progress = Progress(
            TextColumn("candidates"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # The default window of 30 s holds no candidate at all of a slow model.
            speed_estimate_period=300,
        )
        self._task = self._progress.add_task("", total=total, completed=done, rate="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def kept(self, recording: Recording) -> None:
        """One more is there."""
        self._done += 1
        self._tokens += recording.tokens
        now = time.monotonic()
        elapsed_s = now - self._started
        rate = f"{self._tokens / elapsed_s:.0f} tokens/s"
        self._progress.update(self._task, advance=1, rate=rate)
        if not self._console.is_terminal and now - self._told >= _LOG_EVERY_S:
            self._told = now
            left_s = elapsed_s / (self._done - self._before) * (self._total - self._done)
            say(
                self._console, f"{self._done} of {self._total} candidates, {rate}, about {left_s / 60:.0f} minutes left"
            )

    def lost(self, why: str) -> None:
        """One could not be had."""
        say(self._console, f"Lost: {why}", style="yellow")
