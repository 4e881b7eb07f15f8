"""The picture of a comparison: what each way of scoring gains, keeps, ranks and costs. Loads matplotlib."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptive.evaluation.statistics import Estimate
from server.eval_compare import PAPER, Comparison, Point, Way
from server.eval_plot import bars, tidy

# Okabe and Ito's, which the colour-blind can tell apart; baselines are grey.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B0000", "#000000")
_MARKERS: Final = "oshDXP^v"
_GREYS: Final = ("#777777", "#aaaaaa")
_PAPER: Final = "#B8860B"
_PRUNING_PANELS: Final = 3


def draw(comparison: Comparison, better: str) -> bytes:
    """Return the picture as PNG. better: `passed` or `reward`, by which quality is told."""
    figure = Figure(figsize=(20, 10.5), layout="constrained")
    ((share, gain, ranking, tokens), (*pruning, seconds)) = figure.subplots(2, 4)
    looks = _looks(comparison.ways)
    _shares(share, comparison, better, looks)
    _gains(gain, comparison, better, looks)
    _ranking(ranking, comparison, better, looks)
    _tokens(tokens, comparison, looks)
    _seconds(seconds, comparison, looks)
    for axes, place in zip(pruning, _pruning_places(comparison), strict=True):
        if place is None:
            axes.set_axis_off()
        else:
            _pruning(axes, comparison, better, looks, place)
    figure.legend(*ranking.get_legend_handles_labels(), fontsize=9, frameon=False, loc="outside lower center", ncols=6)
    figure.suptitle("\n".join(comparison.heading()[:2]), fontsize=10)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=110)
    return written.getvalue()


_Look = tuple[str, str]  # colour and marker


def _looks(ways: Sequence[Way]) -> dict[str, _Look]:
    looks = {}
    colours, greys, markers = itertools.cycle(_COLOURS), itertools.cycle(_GREYS), itertools.cycle(_MARKERS)
    for way in ways:
        looks[way.name] = (next(greys) if way.baseline else next(colours), next(markers))
    return looks


def _shares(axes: Axes, comparison: Comparison, better: str, looks: Mapping[str, _Look]) -> None:
    without = []
    for way in comparison.ways:
        found = [(point, share) for point in way.adaptive if (share := point.figures[f"share_{better}"]) is not None]
        if found:
            _line(axes, [point.of("drawn").value for point, _ in found], [each for _, each in found], looks[way.name])
        elif not way.baseline:
            without.append(way.name)
    axes.axhline(100, color="#bbbbbb", linewidth=1, zorder=1)
    axes.plot(PAPER.samples, 100 * PAPER.share, marker="*", markersize=17, color=_PAPER, linestyle="none", zorder=5)
    axes.annotate(
        f"the paper: {PAPER.share:.0%} at {PAPER.samples:g}\n({PAPER.source})",
        (PAPER.samples, 100 * PAPER.share),
        xytext=(12, -4),
        textcoords="offset points",
        fontsize=8,
        color=_PAPER,
        verticalalignment="top",
    )
    if without:
        text = "No share, as best of n gains nothing that\ncan be told from nothing: " + ", ".join(without)
        axes.annotate(text, (0.03, 0.02), xycoords="axes fraction", fontsize=8, color="#8B0000")
    axes.set(
        xlabel="samples per prompt, average",
        ylabel=f"share of the gain of best of {comparison.n} in {better}, %",
        xlim=(1, comparison.n),
        title="Adaptive sampling",
    )
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(comparison.n.bit_length()) if 2**power <= comparison.n]
    axes.set_xticks(ticks, list(map(str, ticks)))
    tidy(axes)


def _gains(axes: Axes, comparison: Comparison, better: str, looks: Mapping[str, _Look]) -> None:
    for way in comparison.ways:
        points = [*way.adaptive, way.best]
        found = [point.of(f"more_{better}") for point in points]
        _line(axes, [point.of("drawn").value for point in points], found, looks[way.name])
    oracle = comparison.ways[0].oracle.of(f"more_{better}")
    axes.axhline(0, color="#bbbbbb", linewidth=1, zorder=1)
    axes.set(
        xlabel=f"samples per prompt, average (an oracle among {comparison.n}: {100 * oracle.value:+.1f} points)",
        ylabel=f"{better}: over one sample, points",
        title="Gain",
        xlim=(1, comparison.n * 1.05),
    )
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(comparison.n.bit_length()) if 2**power <= comparison.n]
    axes.set_xticks(ticks, list(map(str, ticks)))
    tidy(axes)


def _ranking(axes: Axes, comparison: Comparison, better: str, looks: Mapping[str, _Look]) -> None:
    places = [*comparison.checkpoints, None]
    for shift, way in enumerate(comparison.ways):
        accuracies = {each.checkpoint: each.accuracy for each in way.pairs[better]}
        found = [(place, each) for place, at in enumerate(places) if (each := accuracies.get(at)) is not None]
        middle = (len(comparison.ways) - 1) / 2
        at = [place + 0.06 * (shift - middle) for place, _ in found]
        _line(axes, at, [each for _, each in found], looks[way.name], label=way.name, dashed=way.baseline)
    axes.axhline(50, color="#555555", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(places)), ["the whole" if place is None else str(place) for place in places])
    axes.set(
        xlabel="tokens of the reply that were judged (dashed line: chance)",
        ylabel=f"pairs of one prompt ranked rightly by {better}, %",
        title="Ranking",
    )
    tidy(axes)


def _pruning_places(comparison: Comparison) -> list[int | None]:
    """Return the checkpoints that have a panel, as many as there are panels: the paper's, then the first others."""
    preferred = sorted(comparison.checkpoints, key=lambda tokens: (tokens not in {32, 64, 128}, tokens))
    places: list[int | None] = sorted(preferred[:_PRUNING_PANELS])  # type: ignore[assignment]
    return places + [None] * (_PRUNING_PANELS - len(places))


def _pruning(axes: Axes, comparison: Comparison, better: str, looks: Mapping[str, _Look], tokens: int) -> None:
    whole = Estimate(1.0, 1.0, 1.0)
    for way in comparison.ways:
        found: list[tuple[Point, Estimate]] = [
            (point, kept) for point in way.pruned_at(tokens) if (kept := point.figures[f"kept_{better}"]) is not None
        ]
        if found:
            stopped = [0.0, *(100 * point.of("pruned").value for point, _ in found)]
            _line(axes, stopped, [whole, *(kept for _, kept in found)], looks[way.name], dashed=way.baseline)
    axes.axhline(100, color="#bbbbbb", linewidth=1, zorder=1)
    axes.axvspan(100 * PAPER.pruned_from, 100 * PAPER.pruned_to, color=_PAPER, alpha=0.12, linewidth=0)
    axes.annotate(
        f"the paper: {100 * PAPER.pruned_from:.0f} to {PAPER.pruned_to:.0%}\nstopped, minimal loss",
        (50 * (PAPER.pruned_from + PAPER.pruned_to), 0.98),
        xycoords=("data", "axes fraction"),
        fontsize=8,
        color=_PAPER,
        horizontalalignment="center",
        verticalalignment="top",
    )
    axes.set(
        xlabel="candidates stopped, %",
        ylabel=f"{better} kept, % of best of {comparison.n}",
        title=f"Pruned at {tokens} tokens",
        xlim=(-3, 100),
    )
    tidy(axes)


def _tokens(axes: Axes, comparison: Comparison, looks: Mapping[str, _Look]) -> None:
    names = [way.name for way in comparison.ways]
    generated = [way.best.of("generated").value for way in comparison.ways]
    scoring = [way.best.of("scoring").value for way in comparison.ways]
    axes.barh(names, generated, color="#dddddd")
    axes.barh(names, scoring, left=generated, color=[looks[name][0] for name in names])
    for place, (one, other) in enumerate(zip(generated, scoring, strict=True)):
        axes.annotate(f" {one:,.0f} + {other:,.0f}", (0, place), fontsize=8, verticalalignment="center")
    axes.invert_yaxis()
    axes.set(
        xlabel="tokens per prompt: generated (grey) + computed for scores", title=f"Best of {comparison.n}: tokens"
    )
    tidy(axes)


def _seconds(axes: Axes, comparison: Comparison, looks: Mapping[str, _Look]) -> None:
    names = [way.name for way in comparison.ways]
    seconds = [way.best.of("scoring_s").value for way in comparison.ways]
    axes.barh(names, seconds, color=[looks[name][0] for name in names])
    for place, (way, value) in enumerate(zip(comparison.ways, seconds, strict=True)):
        axes.annotate(
            f" {value:.2f} s, {1000 * way.seconds:.0f} ms a score", (0, place), fontsize=8, verticalalignment="center"
        )
    axes.invert_yaxis()
    axes.set(xlabel="seconds of scores per prompt, one after the other", title=f"Best of {comparison.n}: seconds")
    tidy(axes)


def _line(
    axes: Axes,
    places: Sequence[float],
    shares: Sequence[Estimate],
    look: _Look,
    *,
    label: str | None = None,
    dashed: bool = False,
) -> None:
    colour, marker = look
    axes.errorbar(
        places,
        [100 * each.value for each in shares],
        yerr=bars(shares),
        color=colour,
        marker=marker,
        markersize=5,
        linestyle=":" if dashed else "-",
        linewidth=1.4,
        elinewidth=0.7,
        label=label,
        zorder=3,
    )
