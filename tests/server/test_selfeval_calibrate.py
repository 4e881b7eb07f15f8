"""From files of scored examples to a calibrated configuration, a report and a picture."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adaptive.calibration import Feature, Reading
from adaptive.training.fit import Method
from adaptive.training.measures import POSITIONS, measure
from adaptive.training.scored import Scored
from server.reliability_plot import draw
from server.self_evaluation_config import FILE, read_config
from server.selfeval_calibrate import Calibrated, CalibrateError, Source, calibrate
from tests.adaptive.training.scores import scored

IDS = {"format": 1, "suffix_ids": [2, 7], "win_or_tie_ids": [5, 6], "loss_ids": [8]}
READ_OUT = {"win_or_tie_ids": [3], "loss_ids": [4]}
CUTS = (8, 40, 70, 150, 300)


def too_sure(quality: float, _: Reading) -> float:
    return 4 * quality + 1


def written(path: Path, examples: Sequence[Scored]) -> Path:
    path.write_text("".join(example.to_line() + "\n" for example in examples))
    return path


def run(directory: Path, config: Path | None = None, cuts: Sequence[int] = (40,), **how: Any) -> Calibrated:
    seen = written(directory / "calibration.jsonl", scored(30, log_odds=too_sure, cuts=cuts))
    unseen = written(directory / "test.jsonl", scored(20, seed=9, first="q", log_odds=too_sure, cuts=cuts))
    return calibrate(seen, unseen, config or directory, resamples=50, **how)


def test_without_a_file_the_literal_question_is_calibrated(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found.file == tmp_path / FILE
    config = read_config(tmp_path)
    assert config.calibration == found.fit.calibration
    assert json.loads(found.file.read_text()).keys() == {"format", "calibration"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.jsonl", FILE, "test.jsonl"]


def test_a_map_joins_what_the_file_says_already_and_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    before = IDS | {"read_out": READ_OUT, "min_label_mass": 0.0}
    (tmp_path / FILE).write_text(json.dumps(before))
    first = run(tmp_path, method=Method.TEMPERATURE).fit.calibration
    second = run(tmp_path, tmp_path / FILE, method=Method.ISOTONIC).fit.calibration
    assert first != second
    value = json.loads((tmp_path / FILE).read_text())
    assert value.pop("calibration") == second.to_plain()
    assert value == before
    run(tmp_path, source=Source.READ_OUT)
    config = read_config(tmp_path)
    assert config.calibration == second
    assert config.read_out_calibration is not None
    assert config.min_label_mass == 0.0


def test_the_report_shows_unseen_prompts_before_and_after(tmp_path: Path) -> None:
    found = run(tmp_path, cuts=CUTS)
    report = found.report
    assert tuple(each["position"] for each in report["after"]) == POSITIONS
    for before, after in zip(found.before, found.after, strict=True):
        assert before.ece.value > 0.1 > after.ece.value
        assert before.brier.value > after.brier.value
        assert after.examples == 160
    assert report["fitted_on"]["prompts"] == 30
    assert report["measured_on"]["families"] == {"sums": 20 * 8 * 6}
    assert report["measured_on"]["too_little_label_mass"] == 0.0
    assert report["families"]["sums"]["after"][0]["examples"] == 160
    found.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (tmp_path / "out" / "reliability.png").read_bytes() == found.picture
    lines = found.lines()
    assert lines[0].startswith(f"{found.fit.method.value} map of log_odds")
    assert len(lines) == 1 + len(POSITIONS)
    assert "at the end: ECE 0.1" in lines[-1] or "at the end: ECE 0.2" in lines[-1]


def test_a_label_mass_that_the_proxy_would_not_take_for_an_answer_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(IDS | {"min_label_mass": 0.95}))
    assert run(tmp_path).report["measured_on"]["too_little_label_mass"] == 1.0


def test_examples_without_log_probabilities_are_calibrated_without_them(tmp_path: Path) -> None:
    def bare(path: Path, first: str, seed: int) -> Path:
        examples = scored(20, seed=seed, first=first, cuts=(8,))
        readings = [Reading(each.reading.log_odds, each.reading.tokens, each.reading.final) for each in examples]
        pairs = zip(examples, readings, strict=True)
        return written(
            path,
            [Scored(each.prompt, "x", each.answer, reading, each.win_or_tie, each.passed) for each, reading in pairs],
        )

    seen, unseen = bare(tmp_path / "a", "p", 0), bare(tmp_path / "b", "q", 1)
    found = calibrate(seen, unseen, tmp_path, method=Method.LOGISTIC, resamples=20)
    assert found.fit.calibration.features == (Feature.LOG_ODDS, Feature.LOG_TOKENS)
    assert found.report["measured_on"]["label_mass"] is None
    with pytest.raises(CalibrateError, match=r"no map could be fitted: .*no log-probabilities"):
        calibrate(seen, unseen, tmp_path, features=tuple(Feature), resamples=20)
    with_them = written(tmp_path / "c", scored(20, cuts=(8,)))
    with pytest.raises(CalibrateError, match="Give features that both files have"):
        calibrate(with_them, unseen, tmp_path, features=tuple(Feature), method=Method.LOGISTIC, resamples=20)


def test_a_prompt_on_both_sides_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    seen = written(tmp_path / "a", scored(6, cuts=()))
    unseen = written(tmp_path / "b", [*scored(2, cuts=(), first="q"), *scored(4, cuts=())])
    with pytest.raises(CalibrateError, match=r"have 4 prompts in common \(p0, p1, p2, \.\.\.\)"):
        calibrate(seen, unseen, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_what_cannot_be_calibrated_is_said_with_the_remedy(tmp_path: Path) -> None:
    seen, unseen = written(tmp_path / "a", scored(6, cuts=())), written(tmp_path / "b", scored(2, cuts=(), first="q"))
    with pytest.raises(CalibrateError, match="read-out's map goes beside its labels"):
        calibrate(seen, unseen, tmp_path, source=Source.READ_OUT)
    (tmp_path / FILE).write_text(json.dumps(IDS))
    with pytest.raises(CalibrateError, match="read_out is missing"):
        calibrate(seen, unseen, tmp_path, source=Source.READ_OUT)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CalibrateError, match="is not JSON"):
        calibrate(seen, unseen, tmp_path)
    (tmp_path / FILE).write_text(json.dumps(IDS))
    with pytest.raises(CalibrateError, match="cannot be read"):
        calibrate(tmp_path / "nowhere", unseen, tmp_path)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(CalibrateError, match="no scored examples"):
        calibrate(tmp_path / "empty", unseen, tmp_path)
    (tmp_path / "wrong").write_text('{"id": 3}\n')
    with pytest.raises(CalibrateError, match=r"wrong, line 1: family is missing"):
        calibrate(tmp_path / "wrong", unseen, tmp_path)
    one = written(tmp_path / "one", scored(1, cuts=()))
    with pytest.raises(CalibrateError, match="at least two prompts"):
        calibrate(one, unseen, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == IDS


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    seen, unseen = written(tmp_path / "a", scored(6, cuts=())), written(tmp_path / "b", scored(2, cuts=(), first="q"))
    with pytest.raises(CalibrateError, match="cannot be written"):
        calibrate(seen, unseen, tmp_path / "a" / FILE, method=Method.TEMPERATURE, resamples=20)


def test_an_impossible_label_was_said_with_certainty_before(tmp_path: Path) -> None:
    def certain(quality: float, _: Reading) -> float:
        return math.inf if quality > 0 else -math.inf

    seen = written(tmp_path / "a", scored(20, cuts=(), log_odds=certain))
    unseen = written(tmp_path / "b", scored(10, cuts=(), first="q", log_odds=certain))
    (before,) = calibrate(seen, unseen, tmp_path, resamples=20).before
    assert [round(each.said, 6) for each in before.bins] == [0.0, 1.0]


@pytest.mark.parametrize("cuts", [CUTS, (40,), ()])
def test_the_picture_is_a_png_whether_or_not_every_length_has_examples(cuts: tuple[int, ...]) -> None:
    examples = scored(5, cuts=cuts)
    found = measure(examples, [0.5 + 0.001 * place for place in range(len(examples))], resamples=20)
    picture = draw(found, found, "heading")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (1440, 1020)


def test_the_serving_process_loads_nothing_that_only_fitting_needs() -> None:
    heavy = "numpy sklearn scipy matplotlib adaptive.training.fit"
    code = f"import sys, server.app, server.cli; print([each for each in {heavy.split()!r} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
