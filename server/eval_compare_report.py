"""The report of a comparison: one table of ways beside each other, as text, as HTML and as JSON."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from adaptive.evaluation.statistics import Estimate
from adaptive.evaluation.strategies import KEEPS
from server.eval_compare import BETTERS, PAPER, Comparison, Way
from server.eval_report import finite, html_page, html_table, percent
from server.terminal import say

_NOTES: Final = (
    "share: of what full best of n by the same scorer gains over one sample; - where that cannot be told from nothing.",
    "kept: of what full best of n by the same scorer passes, or is rewarded. Intervals hold 95 % of bootstrap",
    f"resamples of the prompts. The paper ({PAPER.source}) measured another model on other prompts, with up to",
    f"{PAPER.n} samples: its figures are landmarks.",
)
_NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class _Line:
    """A measure of every way, and the paper's figure."""

    measure: str
    of: Callable[[Way], str]
    paper: str = ""


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the lines: one measure per line, one way per column, the paper's figures last."""
    lines = [line for better in BETTERS for line in _quality(comparison, better)]
    lines += [line for better in BETTERS for line in _pairs(comparison, better)]
    lines += _costs(comparison)
    heading = ["", *(way.name for way in comparison.ways), "the paper"]
    return heading, [[line.measure, *map(line.of, comparison.ways), line.paper] for line in lines]


def plain(comparison: Comparison) -> dict[str, Any]:
    """Return everything as JSON values."""
    value: dict[str, Any] = finite(asdict(comparison))
    return value | {"paper": asdict(PAPER)}


def show(comparison: Comparison, console: Console) -> None:
    """Print the comparison."""
    for line in comparison.heading():
        say(console, line)
    heading, lines = table(comparison)
    shown = Table(box=None, pad_edge=False)
    for place, column in enumerate(heading):
        shown.add_column(column, justify="right" if place else "left", no_wrap=not place)
    for cells in lines:
        shown.add_row(*cells)
    say(console, "")
    console.print(shown)
    for note in _NOTES:
        say(console, note, style="dim")


def as_html(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """Return the comparison as one file without anything outside of it. pictures: PNG, by what is better."""
    title = html.escape(f"{comparison.dataset}: ways of scoring")
    parts = [f"<h1>{title}</h1>", *(f"<p>{html.escape(line)}</p>" for line in comparison.heading())]
    for better, picture in pictures.items():
        image = base64.b64encode(picture).decode()
        parts.append(f'<h2>By {better}</h2><img alt="{title}, by {better}" src="data:image/png;base64,{image}">')
    parts += ["<h2>All figures</h2>", html_table(*table(comparison)), f"<p>{html.escape(' '.join(_NOTES))}</p>"]
    return html_page(title, parts)


def _quality(comparison: Comparison, better: str) -> Iterator[_Line]:
    best = f"best of {comparison.n}"
    yield _Line(f"{better}: one sample, %", lambda way: percent(way.one.of(better)))
    yield _Line(f"{better}: an oracle's gain, points", lambda way: percent(way.oracle.of(f"more_{better}"), sign="+"))
    yield _Line(f"{better}: {best}, %", lambda way: percent(way.best.of(better)))
    yield _Line(f"{better}: gain of {best}, points", lambda way: percent(way.best.of(f"more_{better}"), sign="+"))
    share, samples = f"{PAPER.share:.0%}", f"{PAPER.samples:g}"
    yield _Line(
        f"{better}: share of it at about {samples} samples, %",
        lambda way: _share_near(way, better),
        f"{100 * PAPER.share:.0f} at {samples}",
    )
    yield _Line(f"{better}: samples for {share} of it", lambda way: _samples_for(way, better), samples)
    for tokens in comparison.checkpoints:
        for keep in KEEPS:
            yield _Line(
                f"{better}: kept, {keep:.0%} go on at {tokens}, % (stopped)",
                partial(_kept, tokens=tokens, keep=keep, better=better),
                f"minimal loss ({100 * (1 - keep):.0f})",
            )


def _share_near(way: Way, better: str) -> str:
    point = way.near(PAPER.samples)
    share = None if point is None else point.figures[f"share_{better}"]
    if point is None or share is None:
        return _NOTHING
    return f"{percent(share, decimals=0)} at {point.of('drawn').value:.2f}"


def _samples_for(way: Way, better: str) -> str:
    samples = way.samples_for(PAPER.share, better)
    return _NOTHING if samples is None else f"{samples:.2f}"


def _kept(way: Way, tokens: int, keep: float, better: str) -> str:
    point = next((each for each in way.pruned_at(tokens) if each.keep == keep), None)
    kept = None if point is None else point.figures[f"kept_{better}"]
    if point is None or kept is None:
        return _NOTHING
    return f"{percent(kept, decimals=0)} ({100 * point.of('pruned').value:.0f})"


def _pairs(comparison: Comparison, better: str) -> Iterator[_Line]:
    for place in (*comparison.checkpoints, None):
        when = "whole replies" if place is None else f"after {place}"
        yield _Line(
            f"{better}: pairs ranked rightly, {when}, %",
            partial(_accuracy, better=better, place=place),
        )


def _accuracy(way: Way, better: str, place: int | None) -> str:
    found = next((each.accuracy for each in way.pairs[better] if each.checkpoint == place), None)
    return _NOTHING if found is None else percent(found)


def _costs(comparison: Comparison) -> Iterator[_Line]:
    best = f"best of {comparison.n}"
    yield _Line("tokens computed for a score", lambda way: f"{way.tokens:.0f}")
    yield _Line("seconds for a score", lambda way: f"{way.seconds:.3f}")
    yield _Line(f"{best}: tokens generated", lambda way: _number(way.best.of("generated")))
    yield _Line(f"{best}: tokens for scores", lambda way: _number(way.best.of("scoring")))
    yield _Line(f"{best}: seconds of scores", lambda way: f"{way.best.of('scoring_s').value:.2f}")
    yield _Line(f"adaptive, about {PAPER.samples:g} samples: tokens generated + for scores", _adaptive_tokens)


def _adaptive_tokens(way: Way) -> str:
    point = way.near(PAPER.samples)
    if point is None:
        return _NOTHING
    return f"{_number(point.of('generated'))} + {_number(point.of('scoring'))}"


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f}"
