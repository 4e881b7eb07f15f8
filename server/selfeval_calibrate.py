"""`preamble selfeval calibrate`: fits a calibration map, writes it where it belongs, and reports on other prompts.

In: two files of scored examples (`adaptive.training.scored`), of different prompts: one to fit on, one to measure on.
Out: the map in a `preamble_self_evaluation.json`; report.json and reliability.png in a directory. Loads scikit-learn
and matplotlib.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from adaptive.calibration import LARGEST_LOG_ODDS, CalibrationMap, Feature, LogProbabilitiesMissing
from adaptive.evaluation.statistics import Estimate
from adaptive.training.fit import Fit, Method, fit
from adaptive.training.measures import Measured, measure
from adaptive.training.scored import Scored, ScoredError, read_scored
from server.reliability_plot import draw
from server.self_evaluation_config import (
    FILE,
    FORMAT,
    SelfEvaluationConfig,
    SelfEvaluationConfigError,
    read_config,
)

_SHOWN_IDS: Final = 3


class CalibrateError(Exception):
    """A calibration could not be made. The message says why and what to do about it."""


class Source(StrEnum):
    """What the scores came from, and so where their map belongs."""

    QUESTION = "question"
    READ_OUT = "read_out"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of it. file: where the map was written. before, after: on prompts that the fit has not seen."""

    file: Path
    fit: Fit
    before: tuple[Measured, ...]
    after: tuple[Measured, ...]
    report: dict[str, Any]
    picture: bytes

    def write(self, directory: Path) -> None:
        """Write the report and the picture."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "reliability.png").write_bytes(self.picture)
        text = json.dumps(self.report, indent=1, allow_nan=False)
        (directory / "report.json").write_text(text + "\n", encoding="utf-8")

    def lines(self) -> tuple[str, ...]:
        """Return what people are told on a terminal: what was fitted, then a line for each length."""
        told = [f"{self.fit.method.value} map of {', '.join(self.fit.calibration.features)}, in {self.file}"]
        for before, after in zip(self.before, self.after, strict=True):
            where = "at the end" if after.position is None else f"{after.position} tokens"
            told.append(
                f"{where}: ECE {before.ece.value:.3f} -> {_with_interval(after.ece)}, "
                f"Brier {before.brier.value:.3f} -> {_with_interval(after.brier)} "
                f"(saying the mean: {after.brier_of_mean.value:.3f}), "
                f"ranks passing ones of a prompt higher {before.passed.pairs.value:.3f} -> "
                f"{_with_interval(after.passed.pairs)}"
            )
        return tuple(told)


def calibrate(
    fit_on: Path,
    measure_on: Path,
    config: Path,
    *,
    source: Source = Source.QUESTION,
    method: Method | None = None,
    features: Sequence[Feature] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibrated:
    """Fit on one file, measure on the other, and write the map into the configuration.

    config: the file or its directory. Where there is none, the map is written for the literal question. features: None
    takes all that the examples have. Nothing is written unless everything went well. Raises `CalibrateError`.
    """
    file = config / FILE if config.is_dir() else config
    value, known = _configured(file, source)
    seen, unseen = _examples(fit_on), _examples(measure_on)
    both = sorted({each.prompt for each in seen} & {each.prompt for each in unseen})
    if both:
        shown = ", ".join(both[:_SHOWN_IDS]) + (", ..." if len(both) > _SHOWN_IDS else "")
        problem = f"{fit_on} and {measure_on} have {len(both)} prompts in common ({shown})."
        raise CalibrateError(f"{problem} A map that is measured on what it was fitted to looks better than it is.")
    found = _fitted(seen, features or _features(seen + unseen), method, fit_on)
    raw = [_raw(each.reading.log_odds) for each in unseen]
    said = _said(found.calibration, unseen, measure_on)
    before, after = (measure(unseen, each, resamples=resamples, seed=seed) for each in (raw, said))
    report = {
        "format": 1,
        "source": source.value,
        "config": str(file),
        "fit": found.to_plain(),
        "fitted_on": _about(seen, fit_on, known, source),
        "measured_on": _about(unseen, measure_on, known, source),
        "resamples": resamples,
        "seed": seed,
        "before": [each.to_plain() for each in before],
        "after": [each.to_plain() for each in after],
        "families": _families(unseen, raw, said, resamples, seed),
    }
    heading = f"Scores of {source.value.replace('_', '-')} before and after calibration ({found.method.value})\n"
    heading += f"{len(unseen)} examples of {len({each.prompt for each in unseen})} prompts that the fit has not seen"
    picture = draw(before, after, heading)
    _write(file, _merged(value, source, found.calibration))
    return Calibrated(file, found, before, after, report, picture)


def _configured(file: Path, source: Source) -> tuple[dict[str, Any], SelfEvaluationConfig]:
    """Return what the file says now, decoded and understood."""
    if not file.exists():
        if source is Source.READ_OUT:
            raise CalibrateError(f"{file} is not there, and a read-out's map goes beside its labels. Train one first.")
        return {"format": FORMAT}, SelfEvaluationConfig()
    try:
        known = read_config(file)
    except SelfEvaluationConfigError as error:
        raise CalibrateError(str(error)) from error
    if source is Source.READ_OUT and known.read_out is None:
        raise CalibrateError(f"{file}: read_out is missing; a read-out's map goes beside its labels.")
    value: dict[str, Any] = json.loads(file.read_bytes())
    return value, known


def _examples(file: Path) -> tuple[Scored, ...]:
    try:
        with file.open(encoding="utf-8") as opened:
            found = read_scored(opened, str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrateError(f"{file} cannot be read ({error}).") from error
    except ScoredError as error:
        raise CalibrateError(str(error)) from error
    if not found:
        raise CalibrateError(f"{file} has no scored examples. Score some first.")
    return found


def _features(examples: Sequence[Scored]) -> tuple[Feature, ...]:
    """Return the features that all examples have."""
    readings = [each.reading for each in examples]
    missing = {
        Feature.MEAN_LOG_PROBABILITY: any(each.mean_log_probability is None for each in readings),
        Feature.LEAST_LOG_PROBABILITY: any(each.least_log_probability is None for each in readings),
    }
    return tuple(feature for feature in Feature if not missing.get(feature, False))


def _fitted(examples: Sequence[Scored], features: Sequence[Feature], method: Method | None, file: Path) -> Fit:
    readings = [each.reading for each in examples]
    targets, prompts = [each.win_or_tie for each in examples], [each.prompt for each in examples]
    try:
        return fit(readings, targets, prompts, features=features, method=method)
    except (ValueError, LogProbabilitiesMissing) as error:
        raise CalibrateError(f"{file}: no map could be fitted: {error}.") from error


def _said(calibration: CalibrationMap, examples: Sequence[Scored], file: Path) -> list[float]:
    try:
        return [calibration.probability(each.reading) for each in examples]
    except LogProbabilitiesMissing as error:
        raise CalibrateError(f"{file}: {error}. Give features that both files have.") from error


def _raw(log_odds: float) -> float:
    """Return the probability that a scorer without a map would have said."""
    return 1.0 / (1.0 + math.exp(-max(-LARGEST_LOG_ODDS, min(LARGEST_LOG_ODDS, log_odds))))


def _about(examples: Sequence[Scored], file: Path, config: SelfEvaluationConfig, source: Source) -> dict[str, Any]:
    """Return what a report says of a file of examples.

    too_little_label_mass: share of the examples, of the question, that the proxy would not take for an answer.
    """
    masses = [each.label_mass for each in examples if each.label_mass is not None]
    about = {
        "file": str(file),
        "examples": len(examples),
        "prompts": len({each.prompt for each in examples}),
        "families": dict(sorted(Counter(each.family for each in examples).items())),
        "win_or_tie": fmean(each.win_or_tie for each in examples),
        "passed": fmean(each.passed for each in examples),
        "label_mass": fmean(masses) if masses else None,
    }
    if source is Source.QUESTION and masses:
        about["too_little_label_mass"] = fmean(mass < config.min_label_mass for mass in masses)
    return about


def _families(
    examples: Sequence[Scored], raw: Sequence[float], said: Sequence[float], resamples: int, seed: int
) -> dict[str, Any]:
    """Return the figures of each family at its answers' end, before and after."""
    found = {}
    for family in sorted({each.family for each in examples}):
        places = [place for place, each in enumerate(examples) if each.family == family and each.reading.final]
        chosen = [examples[place] for place in places]
        figures = {}
        for name, given in (("before", raw), ("after", said)):
            at_end = measure(chosen, [given[place] for place in places], resamples=resamples, seed=seed)
            figures[name] = [each.to_plain() for each in at_end]
        found[family] = figures
    return found


def _merged(value: dict[str, Any], source: Source, calibration: CalibrationMap) -> dict[str, Any]:
    plain = calibration.to_plain()
    if source is Source.READ_OUT:
        return {**value, "read_out": {**value["read_out"], "calibration": plain}}
    return {**value, "calibration": plain}


def _write(file: Path, value: dict[str, Any]) -> None:
    """Put the new content in the file's place in one step, once it is known to be understood."""
    written = file.with_name(f"{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrateError(f"{file} cannot be written ({error}).") from error
    try:
        written.write_text(json.dumps(value) + "\n", encoding="utf-8")
        read_config(written)
        written.replace(file)
    except OSError as error:
        raise CalibrateError(f"{file} cannot be written ({error}).") from error
    finally:
        written.unlink(missing_ok=True)


def _with_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
