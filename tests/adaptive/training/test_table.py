"""The table over families: figures that can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptive.calibration import Reading
from adaptive.training.examples import Group
from adaptive.training.scored import Scored
from adaptive.training.table import ALL, Accuracy, FamilyRow, Scores, plain, ranked, table
from tests.adaptive.training.groups import group

# The better answer is surer of its first tokens, less sure later, and longer.
GOOD = (-0.1, -0.1, -3.0, -3.0, -3.0)
BAD = (-1.0, -1.0, -1.0)


def sums(id: str = "a") -> Group:  # noqa: A002 -- as the field
    return group([1.0, 0.0], [GOOD, BAD], id=id)


def found(row: FamilyRow, scorer: str, place: int | None) -> Accuracy:
    (only,) = (each for each in row.accuracies if (each.scorer, each.place) == (scorer, place))
    return only


def written(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def score(value: float, answer: int, tokens: int, *, final: bool = False, id: str = "a") -> dict[str, Any]:  # noqa: A002 -- as the field
    return {"id": id, "answer": answer, "tokens": tokens, "final": final, "scorer": "probe", "value": value}


def test_pairs_of_unequal_rewards_are_ranked_equal_scores_half_and_unscored_ones_not() -> None:
    assert ranked([0.9, 0.1, 0.5], [1.0, 0.0, 0.0]) == (2.0, 2)
    assert ranked([0.5, 0.5, 0.9], [1.0, 0.0, 0.0]) == (0.5, 2)
    assert ranked([0.9, None, 0.1], [1.0, 0.0, 0.0]) == (1.0, 1)
    assert ranked([0.9, 0.1], [0.5, 0.505]) == (0.0, 0)  # a tie


def test_free_scorers_judge_the_first_tokens_and_the_whole() -> None:
    (row,) = table([sums()], places=(2, 4))
    assert found(row, "mean_log_probability", 2).accuracy.value == 1.0
    assert found(row, "mean_log_probability", None).accuracy.value == 0.0
    assert found(row, "least_log_probability", 2).accuracy.value == 1.0
    assert found(row, "least_log_probability", 4).accuracy.value == 0.0
    assert found(row, "longest", 2).accuracy.value == 0.5  # both are longer than that
    assert found(row, "longest", 4).accuracy.value == 1.0  # the other has ended
    assert found(row, "shortest", None).accuracy.value == 0.0


def test_rates_are_of_prompts_and_a_row_of_all_comes_last() -> None:
    lists = group([1.0, 1.0, 0.0, 0.0], id="b", family="lists")
    hopeless = group([0.0, 0.0], id="c")
    rows = table([sums(), hopeless, lists], places=(1,))
    assert [row.family for row in rows] == ["lists", "sums", ALL]
    assert (rows[1].prompts, rows[1].answers, rows[1].tokens) == (2, 2.0, 3.0)
    assert (rows[1].single.value, rows[1].oracle.value, rows[1].unequal.value) == (0.25, 0.5, 0.5)
    assert (rows[1].reward.value, rows[1].best_reward.value) == (0.25, 0.5)
    assert rows[2].single.value == pytest.approx(1 / 3)
    assert found(rows[2], "longest", None).pairs == 5
    assert found(rows[2], "longest", None).prompts == 2


def test_intervals_are_of_prompts_and_widen_with_fewer() -> None:
    def width(count: int) -> float:
        groups = [group([1.0, 0.0], [GOOD, BAD] if place % 2 else [BAD, GOOD], id=str(place)) for place in range(count)]
        (row,) = table(groups, places=())
        accuracy = found(row, "longest", None).accuracy
        assert accuracy.value == 0.5
        assert accuracy.low is not None
        assert accuracy.high is not None
        return accuracy.high - accuracy.low

    assert width(10) > 2 * width(200) > 0


def test_prompts_whose_answers_are_all_as_good_rank_nothing() -> None:
    (row,) = table([group([1.0, 1.0])], places=(1,))
    assert row.accuracies == ()
    assert row.unequal.value == 0.0


def test_scores_of_files_are_scorers_too(tmp_path: Path) -> None:
    rows = [score(0.2, 0, 2), score(0.9, 0, 2), score(0.5, 1, 2), score(0.1, 0, 5, final=True)]
    path = written(tmp_path / "s.jsonl", *rows, score(0.7, 1, 3, final=True), '{"id": "a", "ans')
    scores = Scores()
    scores.read(path)
    assert (scores.scorers, scores.skipped) == (["probe"], 1)
    (row,) = table([sums()], scores, places=(2, 3, 4))
    assert found(row, "probe", 2).accuracy.value == 1.0  # the latest of two lines counts
    assert found(row, "probe", None).accuracy.value == 0.0
    assert found(row, "probe", 3).pairs == 0  # the longer answer has no score there
    assert plain([row])[0]["pair_accuracy"][-3]["value"] is None
    assert found(row, "probe", 4).pairs == 0


def test_scored_examples_of_training_are_scores_named_like_their_file(tmp_path: Path) -> None:
    lines = [
        Scored("a", "sums", answer, Reading(log_odds, 4, final=True), 0.5, passed=False).to_line()
        for answer, log_odds in ((0, -3.0), (1, 2.0))
    ]
    scores = Scores()
    scores.read(written(tmp_path / "scored-question-unseen.jsonl", *lines))
    assert (scores.scorers, scores.skipped) == (["scored-question-unseen"], 0)
    assert scores.final["scored-question-unseen"] == {("a", 0): -3.0, ("a", 1): 2.0}


def test_an_answer_that_has_ended_is_judged_by_its_final_score(tmp_path: Path) -> None:
    scores = Scores()
    scores.read(written(tmp_path / "s.jsonl", score(0.9, 0, 4), score(0.5, 1, 3, final=True), score(0.99, 1, 4)))
    (row,) = table([sums()], scores, places=(4,))
    assert found(row, "probe", 4).accuracy.value == 1.0


@pytest.mark.parametrize("line", ["[]", '{"id": "a"}', json.dumps(score(0.5, 0, 2) | {"value": "high"}), "nan"])
def test_lines_that_are_no_score_are_counted(tmp_path: Path, line: str) -> None:
    scores = Scores()
    scores.read(written(tmp_path / "s.jsonl", line, json.dumps(score(0.5, 0, 2)).replace("0.5", "NaN")))
    assert (scores.scorers, scores.skipped) == ([], 2)


def test_the_row_is_json_without_numbers_that_json_lacks() -> None:
    twice = replace(sums(), family="sums")
    said = json.dumps(plain(table([twice], places=(2,))), allow_nan=False)
    assert json.loads(said)[0]["pair_accuracy"][0]["scorer"] == "mean_log_probability"
