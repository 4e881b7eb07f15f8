"""What adaptive best-of-N costs the proxy: CPU per candidate, per generated token and per score.

Preamble runs as `preamble serve --upstream` with one worker in front of the fake upstream, as in `loadtests.overhead`.
In each round it gets loads that differ in one thing: more candidates, more tokens, scores at checkpoints. The figures
are differences inside a round. With `--against` another checkout runs beside it and gets every load right before or
after it, so that a change shows as a ratio. The exit status is 0 when a candidate costs at most what is allowed, 1 when
it costs more or an answer was wrong, 2 when it could not run.

    python -m loadtests.controller
    python -m loadtests.controller --against ../preamble-before
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.comparison import Interval, bootstrap_median
from loadtests.controller_loads import (
    FIGURES,
    LOADS,
    RATIO,
    Load,
    Taken,
    cpu_by_round,
    doubts,
    figures,
    ratios,
    wrong_work,
)
from loadtests.rounds import INTERRUPTED, MISSED, TABLE_WIDTH, UNABLE, interrupt, load_on, rotated, with_progress
from loadtests.targets import Target, TargetError, counts, fake_upstream, preamble

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MEASUREMENT_LIMIT_S = 120.0
_HERE, _BEFORE = "preamble", "before"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: `requests` per load and round, `connections` at a time."""

    rounds: int = 9
    requests: int = 64
    connections: int = 16

    def options(self, load: Load) -> list[str]:
        """Return the load generator's options for one measurement."""
        bounds = [f"--requests={self.requests}", "--warm-up=1", f"--seconds={_MEASUREMENT_LIMIT_S}"]
        fields = f"--fields={orjson.dumps(load.fields()).decode()}"
        stream = ["--stream"] if load.stream else []
        return [*stream, "--json", f"--connections={self.connections}", *bounds, fields]


def measure(target: Target, upstream: Target, load: Load, number: int, plan: Plan) -> Taken:
    """Put one load on one proxy, and see that it made the upstream work as it should. Raises `TargetError`."""
    before = counts(upstream)
    result = load_on(target, target.streams_url, plan.options(load), limit_s=_MEASUREMENT_LIMIT_S)
    did = {name: count - before[name] for name, count in counts(upstream).items()}
    wrong = wrong_work(load, plan.requests + plan.connections, did)
    return Taken(number, target.name, load.name, result, wrong)


def run_rounds(targets: Sequence[Target], upstream: Target, plan: Plan) -> Iterator[Taken]:
    """Measure round by round. Raises `TargetError`."""
    for number in range(plan.rounds):
        for load in rotated(LOADS, number):
            for target in rotated(targets, number):
                yield measure(target, upstream, load, number, plan)


@contextlib.contextmanager
def proxies(gap_s: float, against: Path | None) -> Iterator[tuple[tuple[Target, ...], Target]]:
    """Start the fake upstream and the proxies in front of it; stop them, come what may. Raises `TargetError`."""
    if against is not None and not (against / "server").is_dir():
        raise TargetError(f"{against} is no checkout of Preamble; --against takes the folder that holds server/.")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="preamble-controller-")))
        upstream = stack.enter_context(fake_upstream(folder, gap_s=gap_s))
        running = [stack.enter_context(preamble(folder, upstream, access_log=False, name=_HERE))]
        if against is not None:
            other = preamble(folder, upstream, access_log=False, name=_BEFORE, tree=against.resolve())
            running.append(stack.enter_context(other))
        yield tuple(running), upstream


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every load once.")] = 9,
    requests: Annotated[int, typer.Option(min=1, help="Requests per load and round.")] = 64,
    connections: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 16,
    gap_ms: Annotated[float, typer.Option(min=0.0, help="Time between the chunks of a stream.")] = 10.0,
    against: Annotated[Path | None, typer.Option(help="Another checkout, to be measured beside this one.")] = None,
    max_candidate_ratio: Annotated[
        float, typer.Option(help="Most CPU of a candidate, in times that of a stream passed through.")
    ] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")] = False,
) -> None:
    """Measure the CPU time of adaptive best-of-N in the proxy: per candidate, per token and per score."""
    plan = Plan(rounds, requests, connections)
    notes = Console(stderr=True)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        where = report.environment(with_nginx=False)
        with proxies(gap_ms / 1e3, against) as (targets, upstream):
            total = rounds * len(LOADS) * len(targets)
            taken = with_progress(run_rounds(targets, upstream, plan), total, notes, _doing)
        found = figures(taken, _HERE)
        beside = ratios(taken, _HERE, _BEFORE) if against is not None else {}
    except (TargetError, ValueError) as error:
        notes.print(f"[bold red]controller:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(UNABLE) from None
    except KeyboardInterrupt:
        notes.print("controller: interrupted; everything that was started has been stopped")
        raise typer.Exit(INTERRUPTED) from None
    doubtful = doubts(taken)
    if as_json:
        plain = {
            "environment": asdict(where),
            "figures": {figure.name: {"unit": figure.unit, **asdict(found[figure.name])} for figure in FIGURES},
            "ratios": {name: asdict(ratio) for name, ratio in beside.items()},
            "doubts": doubtful,
            "measurements": [asdict(each) for each in taken],
        }
        print(orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode())
    else:
        console = Console()
        console.width = max(console.width, TABLE_WIDTH)
        report.show_environment(console, where)
        show(console, taken, found, beside, doubtful)
    if found[RATIO.name].median > max_candidate_ratio or any(each.failed for each in taken):
        raise typer.Exit(MISSED)


def show(
    console: Console,
    taken: Sequence[Taken],
    found: dict[str, Interval],
    beside: dict[str, Interval],
    doubtful: Sequence[str],
) -> None:
    """Print the loads, what follows from them, and what is doubtful. beside: ratios to another checkout, if any."""
    rounds = cpu_by_round(taken, _HERE)
    table = _table("CPU of the proxy, milliseconds per request", beside)
    for load in LOADS:
        _row(table, load.what, bootstrap_median([ms[load.name] for ms in rounds]), 3, beside.get(load.name))
    console.print(table)
    table = _table("What follows", beside)
    for figure in FIGURES:
        name = f"{figure.name} ({figure.unit})" if figure.unit else figure.name
        _row(table, name, found[figure.name], 2 if figure.unit != "ms" else 3, beside.get(figure.name))
    console.print(table)
    for doubt in doubtful:
        console.print(f"[yellow]doubtful:[/] {doubt}", highlight=False)


def _table(title: str, beside: dict[str, Interval]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("median", "95 % interval", *(("here / there", "95 % interval") if beside else ())):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _row(table: Table, name: str, value: Interval, digits: int, ratio: Interval | None) -> None:
    cells = [f"{value.median:.{digits}f}", f"{value.low:.{digits}f} to {value.high:.{digits}f}"]
    if ratio is not None:
        cells += [f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"]
    table.add_row(name, *cells)


def _doing(taken: Taken) -> str:
    return f"round {taken.round + 1}: {taken.target}, {taken.load}"


if __name__ == "__main__":
    typer.run(main)
