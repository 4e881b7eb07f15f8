"""`preamble eval`: samples what is not recorded yet, replays policies on what is, and reports."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import uvloop
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adaptive.clock import LoopClock
from adaptive.evaluation.recording import Recording, Setup
from adaptive.evaluation.tasks import Task, TaskError, load
from server.engine import EmbeddedEngine
from server.eval_cache import RecordingFile
from server.eval_sampling import EvalError, Job, Sampler, connect, jobs_of
from server.interrupts import sigterm_interrupts
from server.settings import Settings
from server.terminal import say, shown_progress
from server.upstream import Timeouts, UpstreamClient

# Where there is no terminal to keep a line current on.
_LOG_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. dataset: a name or a path. limit: prompts, None for all. cache, out: None for the default.

    thresholds: of adaptive sampling; none means at quantiles of what was scored.
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
        say(
            err, f"{file.ignored} lines of {file.path} could not be read and are ignored (a killed run tears its last)."
        )
    if not options.report_only:
        with sigterm_interrupts(), _upstream(settings, err) as upstream:
            _sample(upstream, options, tasks, file, err)
    say(out, f"{len(file.recordings)} candidates in {file.path}")


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
        yield settings.model_copy(update={"upstream": upstream.base_url, "upstream_api_key": key, "model": None})
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
