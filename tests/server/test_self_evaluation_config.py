"""The checkpoint's self-evaluation configuration: what a file may say, what is wrong with it, where it is found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.calibration import CalibrationMap
from adaptive.scoring import MIN_LABEL_MASS, Labels
from adaptive.self_evaluation import LITERAL_QUESTION, SelfEvaluationQuestion
from server.new_tokens import NewIds
from server.probe import UpstreamModel, UpstreamProfile
from server.self_evaluation_config import (
    FILE,
    LITERAL,
    QuestionIds,
    SelfEvaluationConfigError,
    SelfEvaluationConfigs,
    in_force,
    read_config,
)

MAP: dict[str, Any] = {
    "features": ["log_odds", "mean_log_probability"],
    "buckets": [
        {"up_to": 48, "weights": [0.5, 1.0], "bias": 0.1, "knots": [[-1.0, 0.2], [1.0, 0.6]]},
        {"final": True, "weights": [1.0, 0.0], "bias": 0.0, "knots": [[-2.0, 0.05], [2.0, 0.95]]},
    ],
}
WORDS = {"format": 1, "question": "Better?", "win_or_tie": "No", "loss": ["Yes", "yes"]}
IDS = {"format": 1, "suffix_ids": [2, 7], "win_or_tie_ids": [5, 6], "loss_ids": [8]}
READ_OUT = {"read_out": {"win_or_tie_ids": [3], "loss_ids": [4]}}


def written(directory: Path, value: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / FILE
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def test_a_question_in_words_may_spell_its_labels_in_several_ways(tmp_path: Path) -> None:
    file = written(tmp_path, WORDS)
    config = read_config(file)
    assert config == read_config(tmp_path)
    assert config.question == SelfEvaluationQuestion("Better?", ("No",), ("Yes", "yes"))
    assert (config.read_out, config.file, config.name) == (None, file, str(file))


def test_a_question_in_token_ids_is_taken_as_it_is(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, IDS | READ_OUT))
    assert config.question == QuestionIds((2, 7), Labels(win_or_tie=(5, 6), loss=(8,)))
    assert config.read_out == Labels(win_or_tie=(3,), loss=(4,))


def test_a_file_with_a_read_out_alone_leaves_the_literal_question(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, {"format": 1} | READ_OUT))
    assert (config.question, config.read_out) == (LITERAL_QUESTION, Labels((3,), (4,)))


@pytest.mark.parametrize("beside", [{"format": 1}, WORDS, IDS])
def test_a_calibration_stands_beside_any_question_and_alone_is_that_of_the_literal_one(
    tmp_path: Path, beside: dict[str, Any]
) -> None:
    plain = read_config(written(tmp_path, beside)) if len(beside) > 1 else LITERAL
    config = read_config(written(tmp_path, beside | {"calibration": MAP, "min_label_mass": 0}))
    assert config.question == plain.question
    assert (config.calibration, config.min_label_mass) == (CalibrationMap.from_plain(MAP), 0.0)
    assert (plain.calibration, plain.min_label_mass) == (None, MIN_LABEL_MASS)
    assert config.about_calibration == "Its scores are calibrated."
    assert plain.about_calibration == "Its scores are not calibrated."


def test_a_read_out_has_a_calibration_of_its_own(tmp_path: Path) -> None:
    read_out = {"read_out": READ_OUT["read_out"] | {"calibration": MAP}}
    config = read_config(written(tmp_path, IDS | read_out))
    assert (config.calibration, config.read_out_calibration) == (None, CalibrationMap.from_plain(MAP))
    assert "not calibrated. Its read-out's labels are known too, and calibrated" in config.about_calibration
    assert "known too, and not calibrated" in read_config(written(tmp_path, IDS | READ_OUT)).about_calibration


def test_a_question_of_new_tokens_says_which_ids_are_the_checkpoints_own(tmp_path: Path) -> None:
    trained = {"format": 1, "new_ids_from": 20, "suffix_ids": [20, 21], "win_or_tie_ids": [22], "loss_ids": [23]}
    read_out = {"read_out": {"win_or_tie_ids": [25], "loss_ids": [24]}}
    config = read_config(written(tmp_path, trained | read_out))
    assert (config.new_ids, config.trained_suffix) == ((20, 21, 22, 23, 24, 25), True)
    assert config.about.startswith("Its question is 2 trained tokens. Its scores are not calibrated.")
    only = read_config(written(tmp_path, {"format": 1, "new_ids_from": 24} | read_out))
    assert (only.new_ids, only.trained_suffix, only.about) == ((24, 25), False, only.about_calibration)
    mixed = read_config(written(tmp_path, trained | {"suffix_ids": [2, 20]}))
    assert (mixed.new_ids, mixed.trained_suffix) == ((20, 22, 23), False)
    plain = read_config(written(tmp_path, IDS))
    assert (plain.new_ids, plain.trained_suffix) == ((), False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "is not JSON"),
        ([], "must be a JSON object"),
        (WORDS | {"format": 2}, "format is 2; this version of Preamble reads 1"),
        ({"question": "x", "win_or_tie": "No", "loss": "Yes"}, "format is None"),
        (WORDS | {"suffix": []}, "suffix is no field"),
        ({"format": 1}, "question is missing"),
        (WORDS | IDS, "suffix_ids stands beside 'question'"),
        ({"format": 1, "question": "x", "win_or_tie": "No"}, "loss is missing; it goes with 'question'"),
        ({"format": 1, "loss_ids": [1]}, "suffix_ids is missing; it goes with 'loss_ids'"),
        (WORDS | {"question": " "}, "question must be the text"),
        (WORDS | {"win_or_tie": []}, "win_or_tie must be a label's text"),
        (WORDS | {"loss": "No"}, "loss leads to the label 'No' twice"),
        (IDS | {"suffix_ids": []}, "suffix_ids must be a list of at least one token id"),
        (IDS | {"suffix_ids": [2, -1]}, r"suffix_ids\[1\] is -1; a token id is a whole number"),
        (IDS | {"loss_ids": [True]}, r"loss_ids\[0\] is True"),
        (IDS | {"loss_ids": [5]}, "loss_ids leads to the label 5 twice"),
        (IDS | {"loss_ids": list(range(10, 137))}, "loss_ids makes 129 labels; vLLM reads at most 128"),
        (IDS | {"min_label_mass": 1.5}, "min_label_mass is 1.5; it is a number from 0 to 1"),
        (IDS | {"new_ids_from": -1}, "new_ids_from is -1; a token id is a whole number"),
        (IDS | {"new_ids_from": True}, "new_ids_from is True"),
        (IDS | {"new_ids_from": "2"}, "new_ids_from is '2'"),
        ({"format": 1, "new_ids_from": 2}, "question is missing"),
        (IDS | {"min_label_mass": True}, "min_label_mass is True"),
        (IDS | {"min_label_mass": None}, "min_label_mass is None"),
        (IDS | {"calibration": []}, "calibration must be an object"),
        (IDS | {"calibration": MAP | {"features": ["x"]}}, r"calibration.features\[0\] is 'x'"),
        ({"format": 1, "calibration": MAP | {"buckets": MAP["buckets"][:1]}}, "calibration.buckets has 0 with final"),
        (
            IDS | {"read_out": READ_OUT["read_out"] | {"calibration": MAP | {"features": ["log_odds"]}}},
            r"read_out.calibration.buckets\[0\].weights must be a list of 1 numbers",
        ),
        (IDS | {"read_out": {"calibration": MAP}}, "read_out.win_or_tie_ids is missing"),
        (IDS | {"read_out": 7}, "read_out must be an object"),
        (IDS | {"read_out": {"win_or_tie_ids": [1]}}, "read_out.loss_ids is missing"),
        (IDS | {"read_out": READ_OUT["read_out"] | {"x": 1}}, "read_out.x is no field"),
        (IDS | {"read_out": {"win_or_tie_ids": [1], "loss_ids": "2"}}, "read_out.loss_ids must be a list"),
    ],
)
def test_what_is_wrong_is_named_with_file_field_and_remedy(tmp_path: Path, value: Any, said: str) -> None:
    file = written(tmp_path, value)
    with pytest.raises(SelfEvaluationConfigError, match=rf"^{re.escape(str(file))}: {said}.*\.$"):
        read_config(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "own.json"):
        with pytest.raises(SelfEvaluationConfigError, match=r"cannot be read \(No such file"):
            read_config(path)


@pytest.mark.parametrize("model", [{"vocab_size": 8}, {"text_config": {"vocab_size": 8}}])
def test_ids_that_the_model_beside_the_file_does_not_have_are_named(tmp_path: Path, model: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model))
    with pytest.raises(SelfEvaluationConfigError, match=r"loss_ids\[0\] is 8, and the model beside it has ids up to 7"):
        read_config(written(tmp_path, IDS))
    read_config(written(tmp_path, IDS | {"loss_ids": [4]}))


@pytest.mark.parametrize("model", ["{", "[]", "{}", '{"vocab_size": "many"}'])
def test_a_model_that_does_not_say_how_many_ids_it_has_is_no_reason_to_refuse(tmp_path: Path, model: str) -> None:
    (tmp_path / "config.json").write_text(model)
    assert read_config(written(tmp_path, IDS)).question


_VALUES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers() | st.none(), max_size=3)
)


_FIELDS = st.sampled_from([*WORDS, *IDS, "read_out", "calibration", "min_label_mass", "new_ids_from", "x"])


@given(st.dictionaries(_FIELDS, _VALUES))
def test_any_object_is_a_configuration_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    file = written(tmp_path_factory.getbasetemp() / "any", {"format": 1} | value)
    named = str(file)
    try:
        named = read_config(file).name
    except SelfEvaluationConfigError as error:
        named = str(error).partition(": ")[0]
    assert named == str(file)


# Where it is found


def model(root: Path | str | None, name: str = "m") -> UpstreamModel:
    return UpstreamModel(name, 100, None if root is None else str(root))


def test_what_is_set_goes_before_what_lies_beside_the_model(tmp_path: Path) -> None:
    written(tmp_path, IDS)
    explicit = read_config(written(tmp_path / "own", WORDS))
    assert in_force(explicit, model(tmp_path)) is explicit
    assert in_force(None, model(tmp_path)).file == tmp_path / FILE


def test_without_a_file_the_literal_question_is_in_force(tmp_path: Path) -> None:
    for root in (None, "", tmp_path, tmp_path / "nowhere", "org/model"):
        assert in_force(None, model(root)) is LITERAL
    assert in_force(None, None) is LITERAL


def test_a_relative_root_is_only_that_of_our_own_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "checkpoint", IDS)
    assert in_force(None, model("checkpoint")) is LITERAL
    assert in_force(None, model("checkpoint"), "checkpoint").file == Path("checkpoint", FILE)


def test_each_served_model_has_its_own_and_it_is_read_again_when_the_upstream_may_be_another(tmp_path: Path) -> None:
    written(tmp_path / "a", IDS | READ_OUT)
    models = (model(tmp_path / "a", "a"), model(tmp_path / "b", "b"))
    profile = [UpstreamProfile(reachable=True, models=models)]
    configs = SelfEvaluationConfigs(lambda: profile[0])
    assert configs.of("a") is configs.of("a") is configs.of(None)
    assert configs.of("b") is LITERAL
    assert configs.of("not served") is LITERAL
    assert [configs.lacks_read_out(name) for name in ("a", "b", None, "not served")] == [False, True, False, False]
    (tmp_path / "a" / FILE).unlink()
    assert configs.of("a") is not LITERAL
    profile[0] = UpstreamProfile(reachable=True, models=models)
    assert configs.of("a") is LITERAL


def test_the_new_ids_are_those_of_the_model_that_is_named_or_aliased(tmp_path: Path) -> None:
    written(tmp_path, IDS | {"new_ids_from": 6})
    models = (model(tmp_path, "a"), model(None, "b"), model(None, "a:b"))
    configs = SelfEvaluationConfigs(lambda: UpstreamProfile(reachable=True, models=models))
    assert configs.new_ids("a") == configs.new_ids(None) == configs.new_ids("a:best-of-4") == NewIds(6, (6, 7, 8))
    assert [configs.new_ids(name) for name in ("b", "a:b", "b:adaptive", "c")] == [None] * 4


def test_nothing_is_known_to_lack_before_the_upstream_has_answered(tmp_path: Path) -> None:
    assert not SelfEvaluationConfigs(lambda: None).lacks_read_out("m")
    explicit = read_config(written(tmp_path, WORDS))
    assert SelfEvaluationConfigs(lambda: None, explicit=explicit).lacks_read_out("m")


def test_a_wrong_file_beside_a_model_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, "{")
    profile = UpstreamProfile(reachable=True, models=(model(tmp_path),))
    assert SelfEvaluationConfigs(lambda: profile).of("m") is LITERAL
