"""What the proxy costs beside nginx: CPU per request and per stream, in one interleaved run on one machine.

In each round nginx, Preamble and the bare upstream ("direct") get the same load, one after the other, in an order that
rotates; all of them run all the time, in front of the same fake upstream. Preamble is started as `preamble serve
--upstream` with one worker; API keys, a constitution of eight principles, cache salt and metrics are on, and that they
are is checked. The exit status is 0 when both ratios are within what is allowed, 1 when not, 2 when it could not run.

    python -m loadtests.overhead
    python -m loadtests.overhead --rounds 20 --json > overhead.json
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtests import report
from loadtests.answers import CHUNKS, completion_body, sse_events
from loadtests.comparison import Measurement, Mode, compare, doubts
from loadtests.generator import CONNECTIONS, GRACE_S, Result
from loadtests.targets import Target, TargetError, fake_upstream, nginx, preamble

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MISSED, UNABLE, INTERRUPTED = 1, 2, 130
_MEASUREMENT_LIMIT_S = 60.0
_TABLE_WIDTH = 120  # a file or a pipe has no width of its own


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Counts are per target and round; `rate` is in requests per second."""

    rounds: int = 9
    requests: int = 4000
    streams: int = 128
    rate: float = 1000.0
    connections: int = CONNECTIONS

    def options(self, mode: Mode) -> list[str]:
        """Return the load generator's options for one measurement."""
        common = [f"--connections={self.connections}", f"--seconds={_MEASUREMENT_LIMIT_S}", "--json"]
        if mode is Mode.STREAMS:
            length = sum(map(len, sse_events()))
            return [*common, "--stream", f"--requests={self.streams}", "--warm-up=1", f"--body-bytes={length}"]
        common.append(f"--body-bytes={len(completion_body())}")
        if mode is Mode.PACED:
            # About half a second, and never fewer than the 99th percentile needs.
            return [*common, f"--requests={max(200, int(self.rate / 2))}", f"--rate={self.rate}"]
        return [*common, f"--requests={self.requests}"]


def measure(target: Target, mode: Mode, plan: Plan) -> Result:
    """Put one load on one target and return what came back. Raises `TargetError` when the generator could not run."""
    url = target.streams_url if mode is Mode.STREAMS else target.requests_url
    command = [sys.executable, "-m", "loadtests.load", f"--url={url}", f"--pid={target.pid}", *plan.options(mode)]
    command += [f"--header={name}: {value}" for name, value in target.headers]
    limit = _MEASUREMENT_LIMIT_S + 2 * GRACE_S
    # A session of its own: Ctrl-C reaches this process only, which ends the generator.
    done = subprocess.run(
        command,
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        timeout=limit,
        start_new_session=True,
        check=False,
    )
    if not done.stdout:
        raise TargetError(f"the load on {target.name} could not be made: {done.stderr.decode(errors='replace')}")
    return Result(**orjson.loads(done.stdout))


def rotated(targets: Sequence[Target], number: int) -> list[Target]:
    """Return the targets in the order of round `number`: each takes every place equally often."""
    start = number % len(targets)
    return [*targets[start:], *targets[:start]]


def run_rounds(targets: Sequence[Target], plan: Plan) -> Iterator[Measurement]:
    """Measure round by round. Raises `TargetError`."""
    for number in range(plan.rounds):
        for mode in Mode:
            for target in rotated(targets, number):
                yield Measurement(number, target.name, mode, measure(target, mode, plan))


@contextlib.contextmanager
def compared_targets(gap_s: float, *, access_log: bool) -> Iterator[tuple[Target, ...]]:
    """Start the fake upstream, nginx and Preamble in a temporary folder; stop them, come what may. `TargetError`."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="preamble-overhead-")))
        upstream = stack.enter_context(fake_upstream(folder, gap_s=gap_s))
        others = nginx(folder, upstream, access_log=access_log), preamble(folder, upstream, access_log=access_log)
        targets = (*(stack.enter_context(other) for other in others), upstream)
        yield targets


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every target once in every mode.")] = 9,
    requests: Annotated[int, typer.Option(min=1, help="Non-streamed requests per target and round.")] = 4000,
    streams: Annotated[int, typer.Option(min=1, help="Streamed requests per target and round.")] = 128,
    rate: Annotated[float, typer.Option(min=1.0, help="Requests per second of the latency comparison.")] = 1000.0,
    connections: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = CONNECTIONS,
    gap_ms: Annotated[float, typer.Option(min=0.0, help="Time between the chunks of a stream.")] = 10.0,
    max_request_ratio: Annotated[float, typer.Option(help="Most CPU per request, in times nginx's.")] = 4.0,
    max_stream_ratio: Annotated[float, typer.Option(help="Most CPU per stream, in times nginx's.")] = 2.0,
    access_log: Annotated[bool, typer.Option(help="Switch the access logs of both on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw a PNG; needs matplotlib.")] = None,
) -> None:
    """Compare Preamble's CPU time and latency with nginx's, side by side in front of the same fake upstream."""
    plan = Plan(rounds, requests, streams, rate, connections)
    notes = Console(stderr=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if plot is not None:
            report.require_matplotlib()
        where = report.environment()
        with compared_targets(gap_ms / 1e3, access_log=access_log) as targets:
            measurements = _with_progress(run_rounds(targets, plan), rounds * len(Mode) * len(targets), notes)
        verdicts = [
            compare(measurements, mode, target="preamble", baseline="nginx", allowed=allowed)
            for mode, allowed in ((Mode.REQUESTS, max_request_ratio), (Mode.STREAMS, max_stream_ratio))
        ]
    except (TargetError, ValueError) as error:
        notes.print(f"[bold red]overhead:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(UNABLE) from None
    except KeyboardInterrupt:
        notes.print("overhead: interrupted; everything that was started has been stopped")
        raise typer.Exit(INTERRUPTED) from None
    doubtful = doubts(measurements, CHUNKS)
    if as_json:
        print(
            orjson.dumps(report.as_plain(where, measurements, verdicts, doubtful), option=orjson.OPT_INDENT_2).decode()
        )
    else:
        console = Console()
        console.width = max(console.width, _TABLE_WIDTH)
        report.show(console, where, measurements, verdicts, doubtful)
    if plot is not None:
        report.plot(plot, measurements, verdicts)
    if not all(verdict.met for verdict in verdicts) or any(m.result.errors for m in measurements):
        raise typer.Exit(MISSED)


def _with_progress(steps: Iterator[Measurement], total: int, console: Console) -> list[Measurement]:
    """Return all measurements, with a bar on a terminal while they are taken."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    taken = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=total)
        for step in steps:
            taken.append(step)
            progress.update(task, advance=1, description=f"round {step.round + 1}: {step.target}, {step.mode}")
    return taken


if __name__ == "__main__":
    typer.run(main)
