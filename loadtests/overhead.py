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
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console

from loadtests import report
from loadtests.answers import CHUNKS, completion_body, sse_events
from loadtests.comparison import Measurement, Mode, compare, doubts
from loadtests.generator import CONNECTIONS, Result
from loadtests.rounds import INTERRUPTED, MISSED, TABLE_WIDTH, UNABLE, interrupt, load_on, rotated, with_progress
from loadtests.targets import Target, TargetError, fake_upstream, nginx, preamble

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MEASUREMENT_LIMIT_S = 60.0


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
    return load_on(target, url, plan.options(mode), limit_s=_MEASUREMENT_LIMIT_S)


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


def _doing(measurement: Measurement) -> str:
    return f"round {measurement.round + 1}: {measurement.target}, {measurement.mode}"


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
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if plot is not None:
            report.require_matplotlib()
        where = report.environment()
        with compared_targets(gap_ms / 1e3, access_log=access_log) as targets:
            total = rounds * len(Mode) * len(targets)
            measurements = with_progress(run_rounds(targets, plan), total, notes, _doing)
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
        console.width = max(console.width, TABLE_WIDTH)
        report.show(console, where, measurements, verdicts, doubtful)
    if plot is not None:
        report.plot(plot, measurements, verdicts)
    if not all(verdict.met for verdict in verdicts) or any(m.result.errors for m in measurements):
        raise typer.Exit(MISSED)


if __name__ == "__main__":
    typer.run(main)
