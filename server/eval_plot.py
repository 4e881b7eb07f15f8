"""The picture of `preamble eval`: quality against tokens, and how well each scorer ranks. Loads matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive.evaluation.statistics import Estimate
from adaptive.evaluation.strategies import ADAPTIVE, BEST_OF, Family
from adaptive.evaluation.study import PairAccuracy, Row
from server.eval_report import Report


@dataclass(frozen=True, slots=True)
class _Style:
    """How a family is drawn. The colours are those of Okabe and Ito, which the colour-blind can tell apart."""

    colour: str
    marker: str
    line: str = "-"


_FAMILIES: Final = {
    Family.ORACLE: _Style("#009E73", "^"),
    Family.RANDOM: _Style("#999999", "v", ":"),
    Family.SELF_EVALUATION: _Style("#0072B2", "o"),
    Family.READ_OUT: _Style("#D55E00", "h"),
    Family.MEAN_LOG_PROBABILITY: _Style("#E69F00", "s"),
    Family.GROUP_CONFIDENCE: _Style("#CC79A7", "D"),
    Family.ADAPTIVE_SELF_EVALUATION: _Style("#0072B2", "X", "--"),
    Family.ADAPTIVE_READ_OUT: _Style("#D55E00", "X", "--"),
    Family.PRUNED_SELF_EVALUATION: _Style("#0072B2", "P", ""),
    Family.PRUNED_READ_OUT: _Style("#D55E00", "P", ""),
    Family.PRUNED_STAGED: _Style("#56B4E9", "P", ""),
    Family.PRUNED_MEAN_LOG_PROBABILITY: _Style("#E69F00", "P", ""),
    Family.PRUNED_GROUP_CONFIDENCE: _Style("#CC79A7", "P", ""),
    Family.DEFAULT: _Style("#8B0000", "*", ""),
    Family.ONE_SAMPLE: _Style("#000000", "*", ""),
}
# Whether the labels go above the points; the other families are at the same n, or have one point.
_LABELLED: Final = {
    Family.ORACLE: True,
    **dict.fromkeys(ADAPTIVE.values(), True),
    Family.PRUNED_SELF_EVALUATION: False,
    Family.PRUNED_READ_OUT: False,
    Family.PRUNED_STAGED: False,
}
_SCORERS: Final = {scorer.value: _FAMILIES[family] for scorer, family in BEST_OF.items()}


def draw(report: Report) -> bytes:
    """Return the picture as PNG."""
    figure = Figure(figsize=(14, 11.5), layout="constrained")
    ((passed, reward), (ranked_passed, ranked_reward)) = figure.subplots(2, 2)
    rows = report.study.rows
    _quality(passed, rows, lambda row: (row.passed, row.more_passed), "replies that pass, %")
    _quality(reward, rows, lambda row: (row.reward, row.more_reward), "mean reward, %")
    _ranking(ranked_passed, [each for each in report.study.pairs if each.better == "passed"], "a passing one, %")
    _ranking(ranked_reward, [each for each in report.study.pairs if each.better == "reward"], "the better one, %")
    ranked_passed.legend(fontsize=8, frameon=False, loc="best")
    figure.legend(*passed.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=5)
    first, second, *_ = report.heading()
    figure.suptitle(f"{first}\n{second}", fontsize=9)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


def _quality(
    axes: Axes, rows: Sequence[Row], figures_of: Callable[[Row], tuple[Estimate, Estimate]], what: str
) -> None:
    """Draw quality against tokens. The bars are those of the difference from one sample, the band is its own.

    Every strategy meets the same easy and hard prompts, which is most of what makes its own interval wide.
    """
    one, _ = next(figures_of(row) for row in rows if row.strategy.family is Family.ONE_SAMPLE)
    axes.axhline(100 * one.value, color="#bbbbbb", linewidth=1, zorder=1)
    if one.low is not None and one.high is not None:
        axes.axhspan(100 * one.low, 100 * one.high, color="#f2f2f2", zorder=0)
    for family, style in _FAMILIES.items():
        found = [row for row in rows if row.strategy.family is family]
        if not found:
            continue
        axes.errorbar(
            [row.total.value for row in found],
            [100 * figures_of(row)[0].value for row in found],
            yerr=bars([figures_of(row)[1] for row in found]),
            color=style.colour,
            marker=style.marker,
            linestyle=style.line or "none",
            markersize=12 if style.marker == "*" else 6,
            elinewidth=0.7,
            linewidth=1.4,
            label=family.value,
            zorder=3,
        )
        for row in found if family in _LABELLED else ():
            place = (row.total.value, 100 * figures_of(row)[0].value)
            text = f"{row.strategy.policy.threshold:.2f}" if family in ADAPTIVE.values() else row.strategy.label
            _label(axes, text, place, style.colour, above=_LABELLED[family])
    axes.set(xlabel="tokens per prompt, scoring included", xlim=(0, None), ylim=(0, None))
    axes.set_ylabel(f"{what}\n(bars: 95 % of the difference from one sample; band: 95 % of one sample)", fontsize=9)
    tidy(axes)


def _label(axes: Axes, text: str, place: tuple[float, float], colour: str, *, above: bool) -> None:
    axes.annotate(
        text,
        place,
        xytext=(3, 6 if above else -6),
        textcoords="offset points",
        fontsize=6.5,
        color=colour,
        rotation=60 if above else -60,
        rotation_mode="anchor",
        verticalalignment="bottom" if above else "top",
        zorder=4,
    )


def _ranking(axes: Axes, pairs: Sequence[PairAccuracy], what: str) -> None:
    places = list(dict.fromkeys(each.checkpoint for each in pairs))
    for shift, (scorer, found) in enumerate(groupby(pairs, key=lambda each: each.scorer)):
        accuracies = [each.accuracy for each in found]
        style = _SCORERS[scorer]
        axes.errorbar(
            [place + 0.08 * (shift - 1) for place in range(len(places))],
            [100 * accuracy.value for accuracy in accuracies],
            yerr=bars(accuracies),
            color=style.colour,
            marker=style.marker,
            capsize=3,
            linewidth=1.4,
            elinewidth=1,
            label=scorer.replace("_", " "),
        )
    axes.axhline(50, color="#555555", linewidth=1, linestyle="--")
    axes.annotate(
        "chance", (1, 50), xycoords=("axes fraction", "data"), fontsize=8, color="#555555", ha="right", va="bottom"
    )
    counted = max(pairs, key=lambda each: each.pairs, default=None)
    count = "" if counted is None else f"; {counted.pairs} pairs of {counted.prompts} prompts, bars: 95 %"
    axes.set_xticks(range(len(places)), ["the whole" if place is None else str(place) for place in places])
    axes.set(xlabel=f"tokens of the reply that were judged{count}", ylabel=f"ranked higher: {what}")
    tidy(axes)


def bars(shares: Sequence[Estimate]) -> list[list[float]]:
    """Return how far the intervals reach down and up, in points."""
    below = [100 * (each.value - (each.value if each.low is None else each.low)) for each in shares]
    above = [100 * ((each.value if each.high is None else each.high) - each.value) for each in shares]
    return [[max(0.0, each) for each in below], [max(0.0, each) for each in above]]


def tidy(axes: Axes) -> None:
    """Leave of the frame only what is needed to read it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
