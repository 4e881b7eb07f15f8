"""The picture of `preamble selfeval train`: how the loss went down and the ranking up. Loads matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive.training.loop import Point
from server.eval_plot import tidy

# Those of Okabe and Ito, which the colour-blind can tell apart.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def draw(curves: Mapping[str, Sequence[Point]]) -> bytes:
    """Return the picture as PNG. curves: by way; each needs a point."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    losses, pairs = figure.subplots(1, 2)
    for (way, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        name = way.replace("_", " ")
        seen = [point.groups for point in curve]
        losses.plot(seen, [point.loss for point in curve], color=colour, linestyle=":", label=f"{name}, in training")
        _line(losses, curve, [point.validation for point in curve], colour, "-", f"{name}, validation")
        _line(pairs, curve, [_percent(point.pairs_whole) for point in curve], colour, "-", f"{name}, whole answers")
        _line(pairs, curve, [_percent(point.pairs_cut) for point in curve], colour, "--", f"{name}, cut answers")
        validated = [point for point in curve if point.validation is not None]
        if validated:
            best = min(validated, key=lambda point: (point.validation, -point.groups))
            losses.plot([best.groups], [best.validation], color=colour, marker="o", linestyle="none")
    losses.set(xlabel="prompts seen", ylabel="loss (dots: the state that is kept)")
    pairs.axhline(50, color="#555555", linewidth=1, linestyle="--")
    pairs.annotate(
        "chance", (1, 50), xycoords=("axes fraction", "data"), fontsize=8, color="#555555", ha="right", va="bottom"
    )
    pairs.set(xlabel="prompts seen", ylabel="the better of two answers ranked higher, %\n(validation prompts)")
    for axes in (losses, pairs):
        tidy(axes)
        axes.legend(fontsize=8, frameon=False)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


def _line(
    axes: Axes, curve: Sequence[Point], values: Sequence[float | None], colour: str, line: str, name: str
) -> None:
    found = [(point.groups, value) for point, value in zip(curve, values, strict=True) if value is not None]
    if found:
        groups, known = zip(*found, strict=True)
        axes.plot(groups, known, color=colour, linestyle=line, label=name)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
