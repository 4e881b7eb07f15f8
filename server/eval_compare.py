"""Several ways of scoring beside each other: reads what `preamble eval` reported of each, on the same prompts.

Each directory is one way of scoring, usually `preamble eval --rescore` of one recording by another checkpoint. Nothing
is computed anew: all figures and their intervals are those of the reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adaptive.evaluation.statistics import Estimate
from adaptive.evaluation.strategies import ADAPTIVE, BEST_OF, PROBABILITIES, PRUNED, Family, Pick, with_staged
from adaptive.policy import STAGES, ScorerName
from server.eval_errors import EvalError

BETTERS: Final = ("passed", "reward")


@dataclass(frozen=True, slots=True)
class Paper:
    """What arXiv 2410.02725 says in its abstract, of Llama 3.1 8B trained to evaluate itself.

    share: of the gain of best of 16, with `samples` on average. pruned_from, pruned_to: share of the samples that can
    be stopped early "with minimal degradation".
    """

    source: str = "arXiv 2410.02725, Llama 3.1 8B"
    n: int = 16
    share: float = 0.74
    samples: float = 1.2
    pruned_from: float = 0.5
    pruned_to: float = 0.75


PAPER: Final = Paper()


@dataclass(frozen=True, slots=True)
class Point:
    """A strategy's figures in a report, by the names of `study.Row`; None where there is none.

    threshold, tokens, keep: of adaptive sampling, and of the checkpoint where it prunes; None for other strategies.
    """

    label: str
    threshold: float | None
    tokens: int | None
    keep: float | None
    figures: Mapping[str, Estimate | None]

    def of(self, name: str) -> Estimate:
        """Return a figure that every strategy has."""
        found = self.figures[name]
        assert found is not None, name  # noqa: S101 -- `study.Row` says which may be None
        return found


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pair accuracy at a checkpoint, None for whole replies; accuracy is None without pairs. See `PairAccuracy`."""

    checkpoint: int | None
    accuracy: Estimate | None
    pairs: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Way:
    """One way of scoring. baseline: it reads log-probabilities that come for nothing, and estimates no probability.

    best: full best of n. adaptive: by samples. pruned: by checkpoint and what goes on. pairs: by what is better.
    tokens, seconds: computed for a score, and taken by it, on average.
    """

    name: str
    scorer: ScorerName
    directory: str
    model: Mapping[str, Any]
    baseline: bool
    one: Point
    oracle: Point
    best: Point
    adaptive: tuple[Point, ...]
    pruned: tuple[Point, ...]
    pairs: Mapping[str, tuple[Pairs, ...]]
    tokens: float
    seconds: float

    def near(self, samples: float) -> Point | None:
        """Return the adaptive strategy that draws about that many on average, None without any."""
        return min(self.adaptive, key=lambda each: abs(each.of("drawn").value - samples), default=None)

    def samples_for(self, share: float, better: str) -> float | None:
        """Return the least samples with which adaptive sampling has that share of the gain, None where it has not."""
        for point in self.adaptive:
            found = point.figures[f"share_{better}"]
            if found is not None and found.value >= share:
                return point.of("drawn").value
        return None

    def pruned_at(self, tokens: int) -> list[Point]:
        """Return what is pruned there, the least first."""
        return sorted((each for each in self.pruned if each.tokens == tokens), key=lambda each: -(each.keep or 0.0))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ways on the same prompts. checkpoints: where all of them were scored. same_candidates: and judged the same."""

    dataset: str
    about: str
    prompts: int
    n: int
    max_tokens: int
    temperature: float
    checkpoints: tuple[int, ...]
    same_candidates: bool
    ways: tuple[Way, ...]

    def heading(self) -> list[str]:
        """Return what is compared, line by line."""
        lines = [
            (
                f"{self.dataset}: {self.prompts} prompts, {self.n} candidates each, at most {self.max_tokens} tokens, "
                f"temperature {self.temperature:g}. The data set: {self.about}."
            ),
            "All ways of scoring judged the same candidates."
            if self.same_candidates
            else "The candidates are not the same: what differs between the ways is also the luck of sampling.",
        ]
        for way in self.ways:
            nothing = [better for better in BETTERS if way.best.figures[f"share_{better}"] is None]
            if nothing:
                lines.append(
                    f"{way.name}: best of {self.n} gains nothing in {' and '.join(nothing)} that can be told from "
                    "nothing, so there is no share of it."
                )
        return lines


def compare(named: Sequence[str]) -> Comparison:
    """Return the comparison of what lies in these directories, each DIR or NAME=DIR.

    Raises `EvalError` for one without a report, and where prompts or n differ.
    """
    reports = dict(_read(each) for each in named)
    if len(reports) < len(named):
        raise EvalError("Two directories have one name. Give each its own: NAME=DIR.")
    sources = list(reports.values())
    first = sources[0]
    for other in sources[1:]:
        _check_alike(first, other)
    ways = [way for name, source in reports.items() for way in _ways(name, source)]
    if not ways:
        raise EvalError(
            "No report is of a scorer that estimates a probability, so there is nothing to compare: evaluate with "
            f"--scorers {PROBABILITIES[0]} or {PROBABILITIES[1]} among them."
        )
    dataset, sampling = first.value["dataset"], first.value["sampling"]
    common = set.intersection(*(set(source.value["sampling"]["checkpoints"]) for source in sources))
    return Comparison(
        dataset=dataset["name"],
        about=dataset["about"],
        prompts=dataset["prompts"],
        n=sampling["n"],
        max_tokens=sampling["max_tokens"],
        temperature=sampling["temperature"],
        checkpoints=tuple(sorted(tokens for tokens in common if tokens < sampling["max_tokens"])),
        same_candidates=len({source.value["sampling"]["candidates_digest"] for source in sources}) == 1,
        ways=(*ways, *_baselines(sources)),
    )


@dataclass(frozen=True, slots=True)
class _Source:
    directory: str
    value: Mapping[str, Any]

    @property
    def scorers(self) -> list[ScorerName]:
        return [ScorerName(name) for name in self.value["sampling"]["scorers"]]


def _read(named: str) -> tuple[str, _Source]:
    before, separator, after = named.partition("=")
    if not separator or Path(named).is_dir():
        before, after = Path(named).name, named
    file = Path(after) / "report.json"
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise EvalError(
            f"{file} cannot be read ({error.strerror}). Name what `preamble eval --out DIR` has left there."
        ) from error
    except ValueError as error:
        raise EvalError(f"{file} is no JSON ({error}). Make it anew: `preamble eval ... --report-only`.") from error
    try:
        _ = value["dataset"]["prompts_digest"], value["sampling"]["candidates_digest"], value["sampling"]["scorers"]
    except (KeyError, TypeError) as error:
        raise EvalError(
            f"{file} is no report that can be compared: it lacks {error}. It may be of an older version; make it anew: "
            "`preamble eval ... --report-only`."
        ) from error
    return before, _Source(after, value)


def _check_alike(first: _Source, other: _Source) -> None:
    for what, field in (("n", "sampling"), ("prompts_digest", "dataset")):
        one, two = first.value[field][what], other.value[field][what]
        if one == two:
            continue
        if what == "n":
            raise EvalError(f"{first.directory} has {one} candidates per prompt, and {other.directory} {two}.")
        counts = [each.value["dataset"]["prompts"] for each in (first, other)]
        raise EvalError(
            f"{first.directory} ({counts[0]} prompts) and {other.directory} ({counts[1]}) are not of the same prompts. "
            "Evaluate both with one data set and --limit; prompts that lack candidates are left out of a report."
        )


def _ways(name: str, source: _Source) -> Iterator[Way]:
    judges = [scorer for scorer in PROBABILITIES if scorer in source.scorers]
    for scorer in with_staged(judges):
        yield _way(name if len(judges) == 1 else f"{name}, {_words(scorer)}", scorer, source)


def _baselines(sources: Sequence[_Source]) -> Iterator[Way]:
    """Yield each free scorer once: on the same candidates it says the same in every report."""
    for scorer in ScorerName:
        source = next((each for each in sources if scorer in each.scorers), None)
        if source is not None and scorer not in PROBABILITIES:
            yield _way(_words(scorer), scorer, source)


def _way(name: str, scorer: ScorerName, source: _Source) -> Way:
    rows = source.value["strategies"]
    n = source.value["sampling"]["n"]

    def of(family: Family | None) -> list[Point]:
        return [_point(row) for row in rows if family is not None and row["family"] == family.value]

    scores = [each for each in source.value["scores"] if each["scorer"] == _judge(scorer, each["checkpoint"])]
    count = sum(each["scores"] for each in scores) or 1
    return Way(
        name=name,
        scorer=scorer,
        directory=source.directory,
        model=source.value["model"],
        baseline=scorer not in PROBABILITIES,
        one=of(Family.ONE_SAMPLE)[0],
        oracle=_last(rows, Family.ORACLE, n),
        best=_last(rows, BEST_OF[scorer], n),
        adaptive=tuple(sorted(of(ADAPTIVE.get(scorer)), key=lambda each: each.of("drawn").value)),
        pruned=tuple(of(PRUNED[scorer])),
        # By tokens, the whole replies last; those of `staged` come from two scorers.
        pairs={
            better: tuple(sorted(_pairs(source.value, scorer, better), key=lambda each: each.checkpoint or math.inf))
            for better in BETTERS
        },
        tokens=sum(each["scores"] * each["computed_tokens"] for each in scores) / count,
        seconds=sum(each["scores"] * each["took_s"] for each in scores) / count,
    )


def _last(rows: Sequence[Mapping[str, Any]], family: Family, n: int) -> Point:
    return next(_point(row) for row in rows if row["family"] == family.value and row["policy"]["n_max"] == n)


def _point(row: Mapping[str, Any]) -> Point:
    policy = row["policy"]
    checkpoint = policy["checkpoints"][0] if len(policy["checkpoints"]) == 1 else None
    adaptive = row["pick"] == Pick.SCORE.value and policy["mode"] == "adaptive"
    return Point(
        label=row["label"],
        threshold=policy["threshold"] if adaptive else None,
        tokens=checkpoint["tokens"] if checkpoint else None,
        keep=checkpoint["keep"] if checkpoint else None,
        figures={name: _estimate(value) for name, value in row.items() if _is_figure(value)},
    )


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, dict) and "low" in value)


def _pairs(report: Mapping[str, Any], scorer: ScorerName, better: str) -> Iterator[Pairs]:
    for each in report["pair_accuracy"]:
        if (each["scorer"], each["better"]) == (_judge(scorer, each["checkpoint"]), better):
            yield Pairs(each["checkpoint"], _estimate(each["accuracy"]), each["pairs"], each["prompts"])


def _estimate(value: Mapping[str, float | None] | None) -> Estimate | None:
    if value is None or value["value"] is None:
        return None
    return Estimate(value["value"], value["low"], value["high"])


def _judge(scorer: ScorerName, checkpoint: int | None) -> str:
    """Return who has judged there."""
    if scorer is ScorerName.STAGED:
        early, late = STAGES
        return (late if checkpoint is None else early).value
    return scorer.value


def _words(scorer: ScorerName) -> str:
    if scorer is ScorerName.STAGED:
        return scorer.value
    return BEST_OF[scorer].value.removeprefix("best of n, ")
