"""The picture of a calibration: how often came what was said, before and after, at each length. Loads matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive.training.measures import POSITIONS, Bin, Measured

# Okabe and Ito, as in the picture of `preamble eval`.
_BEFORE: Final = "#E69F00"
_AFTER: Final = "#0072B2"
_COLUMNS: Final = 3


def draw(before: Sequence[Measured], after: Sequence[Measured], heading: str) -> bytes:
    """Return the picture as PNG. Both are of the same examples; positions without any are left blank."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    panels = figure.subplots(-(-len(POSITIONS) // _COLUMNS), _COLUMNS, sharex=True, sharey=True).flat
    raw, calibrated = ({each.position: each for each in found} for found in (before, after))
    for axes, position in zip(panels, POSITIONS, strict=True):
        _panel(axes, position, raw.get(position), calibrated.get(position))
    handles, labels = next(
        axes for axes in figure.axes if axes.get_legend_handles_labels()[0]
    ).get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, frameon=False, loc="outside lower center", ncols=3)
    figure.suptitle(heading, fontsize=9)
    for axes in figure.axes[-_COLUMNS:]:  # no label of the whole figure: it would lie under the legend
        axes.set_xlabel("P(win or tie) that was said", fontsize=9)
    figure.supylabel("share of other answers beaten or tied (bars: 95 %)", fontsize=9)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


def _panel(axes: Axes, position: int | None, before: Measured | None, after: Measured | None) -> None:
    where = "at the end" if position is None else f"about {position} tokens" if position else "at the beginning"
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="calibrated")
    if before is None or after is None:
        axes.set_title(f"{where}: no examples", fontsize=9)
    else:
        _points(axes, before.bins, _BEFORE, "s", "before")
        _points(axes, after.bins, _AFTER, "o", "after")
        axes.set_title(f"{where}: {after.examples} examples of {after.prompts} prompts", fontsize=9)
        figures = f"ECE {before.ece.value:.3f} to {after.ece.value:.3f}\n"
        figures += f"Brier {before.brier.value:.3f} to {after.brier.value:.3f}"
        axes.annotate(figures, (0.97, 0.04), xycoords="axes fraction", fontsize=8, ha="right", va="bottom")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)


def _points(axes: Axes, bins: Sequence[Bin], colour: str, marker: str, label: str) -> None:
    came = [each.came for each in bins]
    below = [max(0.0, each.value - (each.value if each.low is None else each.low)) for each in came]
    above = [max(0.0, (each.value if each.high is None else each.high) - each.value) for each in came]
    axes.errorbar(
        [each.said for each in bins],
        [each.value for each in came],
        yerr=[below, above],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        elinewidth=0.8,
        label=label,
    )
