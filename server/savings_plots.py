"""Draws the answered board with matplotlib: one PNG of all, or single panels for the HTML page.

matplotlib is imported here and nowhere else, and nothing that serves requests imports this module.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import PowerNorm
from matplotlib.dates import date2num
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import FigureBase
from matplotlib.ticker import FuncFormatter, MaxNLocator

from server.panels import Kind, Level, Unit
from server.savings_report import AnsweredPanel, AnsweredRow, SavingsReport, figures, histogram_cells
from server.savings_text import axis_number, clock_marks, number, span

COLORS: Final = {Level.GOOD: "#1a7f37", Level.DOUBTFUL: "#b35900", Level.BAD: "#c62828"}
_INK: Final = "#1f2328"
_MUTED: Final = "#656d76"
_GRID: Final = "#e4e7eb"
_CARD: Final = "#f6f8fa"
# Distinct in hue and in lightness, for print and for most eyes.
_LINES: Final = ("#0969da", "#d9730d", "#1a7f37", "#8250df", "#c62828", "#57606a", "#0e8a8a", "#b8860b", "#bf3989")
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.07,
    "svg.hashsalt": "preamble",
}
_PAGE_INCHES: Final = 16.0
_LEFT: Final = 0.0085
_HEADER_INCHES: Final = 0.9
_CARDS_INCHES: Final = 1.75
_PLOTS_INCHES: Final = 3.1
_DPI: Final = 110
_MOST_IN_A_LEGEND: Final = 9
_FEW_POINTS: Final = 60
_LEGEND_CHARACTERS: Final = 15.0  # to the inch


def write_png(report: SavingsReport, path: Path) -> None:
    """Draw the whole board into one PNG. Raises `OSError`."""
    with mpl.rc_context(_STYLE):
        heights = [_CARDS_INCHES if _has_figures(row) else _PLOTS_INCHES for row in report.rows]
        canvas = Canvas(figsize=(_PAGE_INCHES, _HEADER_INCHES + sum(heights)), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(canvas)
        parts: Any = canvas.subfigures(1 + len(heights), 1, height_ratios=[_HEADER_INCHES, *heights])
        header = parts[0]
        header.text(_LEFT, 0.62, report.board.title, fontsize=19, fontweight="bold", va="center")
        header.text(_LEFT, 0.2, f"{span(report.start, report.end)}   {report.prometheus}", color=_MUTED, va="center")
        for row, part in zip(report.rows, parts[1:], strict=True):
            _draw_row(part, row, report)
        canvas.savefig(path, facecolor="white")


def panel_svg(answered: AnsweredPanel, report: SavingsReport, width_inches: float) -> str:
    """Return one panel that is no figure as SVG, without its title."""
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(width_inches, 2.7), layout="constrained")
        FigureCanvasSVG(canvas)
        _draw_plot(canvas, answered, report)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _has_figures(row: AnsweredRow) -> bool:
    return any(answered.panel.kind is Kind.FIGURE for answered in row.panels)


def _draw_row(part: Any, row: AnsweredRow, report: SavingsReport) -> None:
    part.suptitle(row.row.title, x=_LEFT, ha="left", fontsize=11.5, fontweight="bold", color=_MUTED)
    places = part.subfigures(1, len(row.panels), squeeze=False)[0]
    for place, answered in zip(places, row.panels, strict=True):
        if answered.panel.kind is Kind.FIGURE:
            _draw_card(place, answered)
        else:
            _draw_plot(place, answered, report, titled=True)


def _draw_card(place: Any, answered: AnsweredPanel) -> None:
    axes = place.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], facecolor=_CARD)
    axes.set_title(answered.panel.title, loc="left", fontsize=9.5, fontweight="bold")
    main, *others = figures(answered)
    color = _INK if main.level is None else COLORS[main.level]
    shown = number(main.value, answered.panel.unit_of(main.query))
    axes.text(
        0.05, 0.66, shown, fontsize=19 if main.value is not None else 13, fontweight="bold", color=color, va="center"
    )
    lines = [main.query.legend]
    lines += [f"{other.query.legend}: {number(other.value, answered.panel.unit_of(other.query))}" for other in others]
    axes.text(0.05, 0.22, "   ".join(lines), fontsize=8.5, color=_MUTED, va="center")


def _draw_plot(place: FigureBase, answered: AnsweredPanel, report: SavingsReport, *, titled: bool = False) -> None:
    axes = place.subplots()
    assert isinstance(axes, Axes)  # noqa: S101 -- subplots() of one
    if titled:
        axes.set_title(answered.panel.title, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_title(answered.panel.unit.value, loc="right", fontsize=7.5, color=_MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(_day(report.start), _day(report.end))
    if answered.empty:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        _remark(axes, "no data in this range")
        return
    marks = clock_marks(report.start, report.end)
    axes.set_xticks(_days([time for time, _ in marks]), [text for _, text in marks])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_ticks(answered.panel.unit)))
    _DRAWN[answered.panel.kind](place, axes, answered, report.window.step_s)


def _draw_lines(place: FigureBase, axes: Axes, answered: AnsweredPanel, step_s: float) -> None:
    shown = list(answered.lines())
    for (legend, series), color in zip(shown, _cycled(_LINES), strict=False):
        times, values = _with_gaps(series.points, step_s)
        marker = "." if len(series.points) <= _FEW_POINTS else None
        axes.plot(_days(times), values, label=legend, color=color, linewidth=1.3, marker=marker, markersize=3)
    _draw_thresholds(axes, answered)
    _fit(axes, [value for _, series in shown for _, value in series.points])
    _draw_legend(place, axes)


def _draw_stack(place: FigureBase, axes: Axes, answered: AnsweredPanel, _: float) -> None:
    """Stack what is not 0 all the time, the largest at the bottom."""
    found = [(legend, dict(series.points)) for legend, series in answered.lines()]
    times = sorted({time for _, points in found for time in points})
    moved = sorted(
        ((legend, points) for legend, points in found if any(points.values())), key=lambda each: -sum(each[1].values())
    )
    if not moved:
        axes.plot(_days(times), [0.0] * len(times), color=_MUTED, linewidth=1.3)
        axes.set_ylim(0, 1)
        _remark(axes, "0 all the time")
        return
    layers = [[points.get(time, 0.0) for time in times] for _, points in moved]
    colors = [color for _, color in zip(moved, _cycled(_LINES), strict=False)]
    if len(times) == 1:  # one point has no area
        times, layers = [times[0], times[0] + 1], [layer * 2 for layer in layers]
    axes.stackplot(_days(times), layers, labels=[legend for legend, _ in moved], colors=colors, alpha=0.8, linewidth=0)
    axes.set_ylim(bottom=0)
    _draw_legend(place, axes)


def _draw_heatmap(place: FigureBase, axes: Axes, answered: AnsweredPanel, step_s: float) -> None:
    times, bounds, counts = histogram_cells(answered)
    if not any(any(row) for row in counts):
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        _remark(axes, "no data in this range")
        return
    edges = _days([times[0] - step_s, *times])
    cells = [[value or math.nan for value in row] for row in counts]
    # Left to right each cell ends at its time, since it counts what came before.
    whole = _filled(cells, times, step_s)
    mesh = axes.pcolormesh(
        edges, range(len(bounds) + 1), whole, cmap="Blues", norm=PowerNorm(0.5, vmin=0), rasterized=True
    )
    axes.set_ylim(0, len(bounds))
    axes.set_yticks([index + 1 for index in range(len(bounds))], [f"≤ {bound}" for bound in bounds])
    axes.grid(visible=False)
    bar = place.colorbar(mesh, ax=axes, pad=0.01, aspect=30)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bar.outline.set_visible(False)


_DRAWN: Final[dict[Kind, Callable[[FigureBase, Axes, AnsweredPanel, float], None]]] = {
    Kind.LINES: _draw_lines,
    Kind.STACKED: _draw_stack,
    Kind.HEATMAP: _draw_heatmap,
}


def _draw_thresholds(axes: Axes, answered: AnsweredPanel) -> None:
    for threshold in answered.panel.thresholds:
        if threshold.above is not None:
            axes.axhline(
                threshold.above, color=COLORS[threshold.level], linestyle=(0, (4, 4)), linewidth=0.9, alpha=0.7
            )


def _fit(axes: Axes, values: Sequence[float]) -> None:
    """Show 0 where it is near: a line that starts far above it would exaggerate every change."""
    low, high = min(values), max(values)
    room = (max(high, 0.0) - min(low, 0.0)) * 0.08 or 0.5
    axes.set_ylim(low - room if low < 0 else 0.0, max(high, 0.0) + room)


def _draw_legend(place: FigureBase, axes: Axes) -> None:
    drawn, legends = axes.get_legend_handles_labels()
    widest = max(len(legend) for legend in legends)
    inches = axes.get_window_extent().width / axes.figure.dpi
    columns = max(1, min(len(legends), int(inches * _LEGEND_CHARACTERS / (widest + 5))))
    place.legend(
        drawn[:_MOST_IN_A_LEGEND],
        legends[:_MOST_IN_A_LEGEND],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=7.8,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _remark(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_MUTED, fontsize=10)


def _with_gaps(points: Sequence[tuple[float, float]], step_s: float) -> tuple[list[float], list[float]]:
    """Return times and values with a hole wherever a point is missing, so that no line is drawn across it."""
    times: list[float] = []
    values: list[float] = []
    for time, value in points:
        if times and time - times[-1] > 1.5 * step_s:
            times.append(times[-1] + step_s)
            values.append(math.nan)
        times.append(time)
        values.append(value)
    return times, values


def _filled(cells: list[list[float]], times: Sequence[float], step_s: float) -> list[list[float]]:
    """Return the cells with those blank that would stretch over a gap in time."""
    return [
        [
            math.nan if index and times[index] - times[index - 1] > 1.5 * step_s else cell
            for index, cell in enumerate(row)
        ]
        for row in cells
    ]


def _cycled(colors: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colors


def _ticks(unit: Unit) -> Callable[[float, int | None], str]:
    return lambda value, _: axis_number(value, unit)


def _zone() -> Any:
    return datetime.now().astimezone().tzinfo


def _day(unix: float) -> float:
    return float(date2num(datetime.fromtimestamp(unix, _zone())))  # type: ignore[no-untyped-call]


def _days(times: Sequence[float]) -> list[float]:
    return [_day(time) for time in times]
