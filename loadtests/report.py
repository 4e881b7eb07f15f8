"""Shows a comparison: on a terminal, as JSON, as a picture; always with the machine, the versions and the commit."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from loadtests.comparison import Measurement, Mode, Verdict, typical
from loadtests.targets import TargetError, nginx_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from loadtests.generator import Result

_PACKAGES = ("preamble", "uvicorn", "uvloop", "httptools", "orjson", "fastapi")


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and with what the figures were taken. `commit` ends in `+` when files differed from it.

    nginx: its version, None where it is not compared with.
    """

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    nginx: str | None
    packages: dict[str, str]
    commit: str
    load_average: float


def environment(*, with_nginx: bool = True) -> Environment:
    """Return the environment of this process. Unknown parts read `unknown`.

    with_nginx: it is compared with, so `TargetError` is raised without it.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    commit = _output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(Path(__file__).parent), "status", "--porcelain", "--untracked-files=no")
    return Environment(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages / 2**30, 1),
        system=f"{platform.system()} {platform.release().partition('-')[0]}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        nginx=(_output(nginx_binary(), "-v").rpartition("/")[2] or "unknown") if with_nginx else None,
        packages={name: _version(name) for name in _PACKAGES},
        commit=(commit or "unknown") + ("+" if changed else ""),
        load_average=os.getloadavg()[0],
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine() or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip() if done.returncode == 0 else ""


def as_plain(
    where: Environment, measurements: Sequence[Measurement], verdicts: Sequence[Verdict], doubtful: Sequence[str]
) -> dict[str, Any]:
    """Return everything as plain values for JSON: every measurement too, so that others can draw their own picture."""
    return {
        "environment": asdict(where),
        "verdicts": [{**asdict(verdict), "met": verdict.met} for verdict in verdicts],
        "doubts": list(doubtful),
        "measurements": [asdict(measurement) for measurement in measurements],
    }


def show(
    console: Console,
    where: Environment,
    measurements: Sequence[Measurement],
    verdicts: Sequence[Verdict],
    doubtful: Sequence[str],
) -> None:
    """Print the environment, a table of medians, the ratios with their verdict, and what is doubtful."""
    show_environment(console, where)
    console.print(_table(measurements))
    for verdict in verdicts:
        what = "64-chunk stream" if verdict.mode is Mode.STREAMS else "request"
        ratio, word = verdict.ratio, "[green]met[/]" if verdict.met else "[bold red]missed[/]"
        console.print(
            f"CPU per {what}: {verdict.target} = [bold]{ratio.median:.2f}[/] x {verdict.baseline} "
            f"(95 % interval {ratio.low:.2f} to {ratio.high:.2f} over {len(verdict.rounds)} rounds); "
            f"target at most {verdict.allowed:g}: {word}",
            highlight=False,
        )
    for doubt in doubtful:
        console.print(f"[yellow]doubtful:[/] {doubt}", highlight=False)


def show_environment(console: Console, where: Environment) -> None:
    """Print the machine, the versions and the commit."""
    versions = where.packages if where.nginx is None else {"nginx": where.nginx, **where.packages}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    console.print(f"{where.cpu}, {where.cores} cores, {where.memory_gib} GiB, {where.system}", highlight=False)
    console.print(f"{where.python}, {packages}, commit {where.commit}", highlight=False)


def _table(measurements: Sequence[Measurement]) -> Table:
    rate = measurements and typical(measurements, measurements[0].target, Mode.PACED, lambda r: r.requests_per_s)
    table = Table(title="Medians over rounds", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    columns: list[tuple[str, Mode, Callable[[Result], float | None], str]] = [
        ("CPU ms\n/request", Mode.REQUESTS, lambda r: r.cpu_ms, "{:.4f}"),
        ("requests\n/s", Mode.REQUESTS, lambda r: r.requests_per_s, "{:,.0f}"),
        (f"p50 ms at\n{rate or 0:,.0f}/s", Mode.PACED, lambda r: r.latency_ms.get("p50"), "{:.2f}"),
        (f"p99 ms at\n{rate or 0:,.0f}/s", Mode.PACED, lambda r: r.latency_ms.get("p99"), "{:.2f}"),
        ("CPU ms\n/stream", Mode.STREAMS, lambda r: r.cpu_ms, "{:.3f}"),
        ("streams\n/s", Mode.STREAMS, lambda r: r.requests_per_s, "{:,.0f}"),
        ("1st byte\np50 ms", Mode.STREAMS, lambda r: r.first_byte_ms.get("p50"), "{:.2f}"),
        ("1st byte\np99 ms", Mode.STREAMS, lambda r: r.first_byte_ms.get("p99"), "{:.2f}"),
        ("pieces\n/stream", Mode.STREAMS, lambda r: r.pieces, "{:.1f}"),
    ]
    for title, *_ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for target in dict.fromkeys(m.target for m in measurements):
        values = [typical(measurements, target, mode, figure) for _, mode, figure, _ in columns]
        cells = ["-" if v is None else shape.format(v) for v, (*_, shape) in zip(values, columns, strict=True)]
        table.add_row(target, *cells)
    return table


def require_matplotlib() -> None:
    """Raise `TargetError` when matplotlib, which is no dependency, is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise TargetError(
            "--plot needs matplotlib, which preamble does not depend on; `pip install matplotlib` adds it."
        )


def plot(path: Path, measurements: Sequence[Measurement], verdicts: Sequence[Verdict]) -> None:
    """Draw CPU per request and per stream of every round as points, the medians as bars. Needs matplotlib."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, _ = pyplot.subplots(1, len(verdicts), figsize=(4.5 * len(verdicts), 3.6), layout="constrained")
    targets = tuple(dict.fromkeys(m.target for m in measurements))
    for axis, verdict in zip(figure.axes, verdicts, strict=True):
        for position, target in enumerate(targets):
            values = [m.result.cpu_ms for m in measurements if m.target == target and m.mode is verdict.mode]
            axis.bar(position, typical(measurements, target, verdict.mode, lambda r: r.cpu_ms), alpha=0.4)
            axis.scatter([position] * len(values), values, s=12, color="black")
        axis.set_xticks(range(len(targets)), targets)
        axis.set_ylabel(f"CPU ms per {verdict.mode.removesuffix('s')}")
        axis.set_title(f"{verdict.ratio.median:.2f} x {verdict.baseline} (at most {verdict.allowed:g})")
    figure.savefig(path, dpi=150)
