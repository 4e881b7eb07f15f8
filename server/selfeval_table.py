"""`preamble selfeval table`: what the families of a data file are like, and which scorer ranks their answers right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.table import Table

from adaptive.evaluation.statistics import LEVEL, Estimate
from adaptive.splits import Split
from adaptive.training.examples import Group, GroupFile
from adaptive.training.parquet import ParquetMissing
from adaptive.training.table import Accuracy, FamilyRow, Scores, plain, table
from server.eval_errors import EvalError
from server.terminal import say

FILES: Final = ("examples.jsonl", "examples.parquet")
_NOTES: Final = (
    "single: an answer passes. oracle: any of a prompt's answers does. unequal: prompts of which some answers are",
    "better than others; only these can teach. Ranking: of two answers to one prompt with unequal rewards the better",
    "one scores higher, equal scores half (chance: 50); an answer that has ended by then is judged whole. Intervals",
    "hold 95 % of bootstrap resamples of the prompts.",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. data: a data file or its directory. splits: none means all."""

    data: Path
    scores: tuple[Path, ...]
    splits: tuple[Split, ...]
    places: tuple[int, ...]
    resamples: int
    seed: int
    as_json: bool


def run_table(options: Options, *, out: Console, err: Console) -> None:
    """Print the table. Raises `EvalError`."""
    file = GroupFile(data_file(options.data))
    scores = Scores()
    try:
        for path in options.scores:
            scores.read(path)
        rows = table(
            _of(file, options.splits),
            scores,
            places=options.places,
            resamples=options.resamples,
            seed=options.seed,
        )
    except (OSError, ParquetMissing) as error:
        raise EvalError(str(error)) from error
    if file.skipped or scores.skipped:
        say(err, f"Ignored: {file.skipped} lines of {file.path} and {scores.skipped} of scores that cannot be read.")
    if not rows:
        raise EvalError(f"{file.path} has no prompts{' of these splits' if options.splits else ''}.")
    if options.as_json:
        study = {"places": list(options.places), "resamples": options.resamples, "interval": LEVEL}
        said = {"data": str(file.path), "splits": [split.value for split in options.splits or tuple(Split)]}
        typer.echo(json.dumps({**said, "study": {**study, "seed": options.seed}, "families": plain(rows)}))
        return
    show(rows, out)


def data_file(path: Path) -> Path:
    """Return the data file of that name, or the one in that directory. Raises `EvalError`."""
    if path.is_file():
        return path
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is None:
        raise EvalError(f"{path} is no data file and has none; make one: preamble selfeval data --out {path}")
    return found


def show(rows: Sequence[FamilyRow], out: Console) -> None:
    """Print the rows: what each family is like, and then how its answers are ranked."""
    families = Table(box=None, pad_edge=False)
    heading = ("family", "prompts", "answers", "tokens", "single %", "oracle %", "unequal %", "reward", "best reward")
    for column in heading:
        families.add_column(column, justify="left" if column == "family" else "right", no_wrap=True)
    for row in rows:
        families.add_row(
            row.family,
            str(row.prompts),
            f"{row.answers:.1f}",
            f"{row.tokens:.0f}",
            *(percent(each) for each in (row.single, row.oracle, row.unequal)),
            *(f"{each.value:.3f}" for each in (row.reward, row.best_reward)),
        )
    out.print(families, markup=False, highlight=False)
    say(out, "\nRanking two answers to one prompt: the better one higher, in %")
    places = list(dict.fromkeys(each.place for row in rows for each in row.accuracies))
    ranking = Table(box=None, pad_edge=False)
    for column in ("family", "scorer"):
        ranking.add_column(column, no_wrap=True)
    for place in places:
        ranking.add_column("whole" if place is None else f"after {place}", justify="right", no_wrap=True)
    ranking.add_column("pairs", justify="right", no_wrap=True)
    for row in rows:
        for scorer, found in groupby(row.accuracies, key=lambda each: each.scorer):
            ranking.add_row(row.family, scorer.replace("_", " "), *_accuracies(list(found)))
        ranking.add_section()
    out.print(ranking, markup=False, highlight=False)
    for note in _NOTES:
        say(out, note, style="dim")


def percent(estimate: Estimate) -> str:
    """Return a share in per cent, with its interval."""
    if math.isnan(estimate.value):
        return "-"
    value = f"{100 * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _accuracies(found: Sequence[Accuracy]) -> Iterator[str]:
    yield from (percent(each.accuracy) for each in found)
    yield str(max(each.pairs for each in found))


def _of(groups: Iterable[Group], splits: Sequence[Split]) -> Iterator[Group]:
    return (group for group in groups if not splits or group.split in splits)
