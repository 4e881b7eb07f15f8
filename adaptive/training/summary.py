"""Counts of a data file: what is in it, how its labels are balanced, and what of it can teach. For the data card."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from adaptive.evaluation.statistics import quantile
from adaptive.splits import Split
from adaptive.training.examples import TIE, Group

BINS: Final = 10
"""Of the histogram of win-or-tie shares: [0, 0.1), ... and the last with 1 in it."""
_QUANTILES: Final = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(slots=True)
class Counts:
    """Of one family, one split, or all.

    teaching: prompts of which some answers are better than others. passed: answers. solved: prompts of which some
    answer passed (the oracle's). tied, pairs: of answers to one prompt. cut: answers that max_tokens ended. lengths: of
    all answers, in tokens. histogram: of win-or-tie shares, in `BINS` bins, by answer.
    """

    prompts: int = 0
    with_constitution: int = 0
    teaching: int = 0
    answers: int = 0
    examples: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    passed: int = 0
    solved: int = 0
    tied: int = 0
    pairs: int = 0
    cut: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    lengths: array[int] = field(default_factory=lambda: array("i"))

    def add(self, group: Group) -> None:
        """Count a group in."""
        rewards = sorted(answer.reward for answer in group.answers)
        self.prompts += 1
        self.with_constitution += group.constitution is not None
        self.teaching += group.teaches
        self.prompt_tokens += len(group.prompt_ids)
        self.solved += any(answer.passed for answer in group.answers)
        self.pairs += len(rewards) * (len(rewards) - 1) // 2
        self.tied += sum(other - reward < TIE for place, reward in enumerate(rewards) for other in rewards[place + 1 :])
        for answer in group.answers:
            self.answers += 1
            self.examples += len(answer.cuts)
            self.tokens += len(answer.token_ids)
            self.passed += answer.passed
            self.cut += answer.finish_reason == "length"
            self.histogram[min(BINS - 1, int(answer.win_or_tie * BINS))] += 1
            self.lengths.append(len(answer.token_ids))

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values; shares are 0 to 1, None where there is nothing to share."""
        ordered = sorted(self.lengths)
        return {
            "prompts": self.prompts,
            "prompts_with_constitution": self.with_constitution,
            "prompts_that_teach": self.teaching,
            "prompts_that_cannot_teach": self.prompts - self.teaching,
            "answers": self.answers,
            "examples": self.examples,
            "answer_tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "pass_rate": _share(self.passed, self.answers),
            "oracle_rate": _share(self.solved, self.prompts),
            "tied_pairs": _share(self.tied, self.pairs),
            "cut_by_max_tokens": _share(self.cut, self.answers),
            "win_or_tie_histogram": self.histogram,
            "answer_length_quantiles": {
                f"{share:g}": round(quantile(ordered, share), 1) for share in _QUANTILES if ordered
            },
        }


class Summary:
    """Counts by family and split, over groups that are added one at a time."""

    def __init__(self) -> None:
        self.all = Counts()
        self.families: dict[str, Counts] = {}
        self.splits: dict[Split, Counts] = {split: Counts() for split in Split}
        self.cells: dict[tuple[str, Split], int] = {}

    def add(self, group: Group) -> None:
        """Count a group in."""
        self.all.add(group)
        self.families.setdefault(group.family, Counts()).add(group)
        self.splits[group.split].add(group)
        cell = (group.family, group.split)
        self.cells[cell] = self.cells.get(cell, 0) + 1

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "all": self.all.plain(),
            "splits": {split.value: counts.plain() for split, counts in self.splits.items()},
            "families": {
                family: counts.plain()
                | {"prompts_by_split": {split.value: self.cells.get((family, split), 0) for split in Split}}
                for family, counts in sorted(self.families.items())
            },
        }


def as_markdown(summary: Summary) -> str:
    """Return the counts as Markdown: a table by family, one by split, and the histogram of labels."""
    lines = ["## Families", ""]
    lines += _table(
        ("family", *_HEADING, *(split.value for split in Split)),
        [
            (family, *_cells(counts), *(str(summary.cells.get((family, split), 0)) for split in Split))
            for family, counts in [*sorted(summary.families.items()), ("all", summary.all)]
        ],
    )
    lines += ["", "The last three columns are prompts by split.", "", "## Splits", ""]
    lines += _table(("split", *_HEADING), [(split.value, *_cells(each)) for split, each in summary.splits.items()])
    lines += [
        "",
        "## Labels",
        "",
        "Answers by the share of the other answers to their prompt that they beat or tie.",
        "",
    ]
    bins = [
        f"{place / BINS:g} to {(place + 1) / BINS:g}{'' if place == BINS - 1 else ' (not in)'}" for place in range(BINS)
    ]
    total = max(1, summary.all.answers)
    lines += _table(
        ("win or tie", "answers", "%"),
        [
            (name, str(count), f"{100 * count / total:.1f}")
            for name, count in zip(bins, summary.all.histogram, strict=True)
        ],
    )
    return "\n".join(lines) + "\n"


_HEADING: Final = (
    "prompts",
    "that teach",
    "answers",
    "examples",
    "tokens",
    "median length",
    "cut %",
    "passed %",
    "oracle %",
    "tied pairs %",
)


def _cells(counts: Counts) -> tuple[str, ...]:
    lengths = sorted(counts.lengths)
    return (
        str(counts.prompts),
        str(counts.teaching),
        str(counts.answers),
        str(counts.examples),
        str(counts.tokens),
        f"{quantile(lengths, 0.5):.0f}" if lengths else "-",
        _percent(counts.cut, counts.answers),
        _percent(counts.passed, counts.answers),
        _percent(counts.solved, counts.prompts),
        _percent(counts.tied, counts.pairs),
    )


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(heading) - 1)]
    return [f"| {' | '.join(each)} |" for each in (heading, ruler, *(map(_cell, row) for row in rows))]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
