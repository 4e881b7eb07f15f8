"""From what a candidate has generated to one number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.calibration import CalibrationMap
from adaptive.candidate import Partial
from adaptive.clock import LoopClock
from adaptive.engine import EngineBusy, EngineError, EngineFailed
from adaptive.scoring import (
    GroupConfidenceScorer,
    Labels,
    MeanLogProbabilityScorer,
    ReadOutScorer,
    Scorer,
    ScoringFailed,
    SelfEvaluationScorer,
    StagedScorer,
    lowest_group_confidence,
)
from adaptive.scripted import ScriptedEngine

from .calibrations import LOG_PROBABILITIES, STEEP
from .runs import LABELS, PROMPT, QUESTION

LOG2 = math.log(2)
logprobs = st.lists(st.floats(min_value=-50, max_value=0), min_size=1, max_size=30)


async def test_self_evaluation_asks_once_for_all_with_the_question_after_the_tokens() -> None:
    engine = ScriptedEngine([], LoopClock(), judge=lambda sequence: len(sequence) / 10, label_mass=0.8)
    scores = await SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS).score([Partial((7,)), Partial((7, 8))])
    assert engine.scored == [((*PROMPT, 7, *QUESTION), (*PROMPT, 7, 8, *QUESTION))]
    assert [score.value for score in scores] == pytest.approx([0.6, 0.7])
    assert [score.label_mass for score in scores] == pytest.approx([0.8, 0.8])


async def test_the_end_of_turn_is_not_repeated_before_the_question() -> None:
    engine = ScriptedEngine([], LoopClock())
    await SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS, end_ids=frozenset({99})).score([Partial((7, 99))])
    assert engine.scored == [((*PROMPT, 7, *QUESTION),)]


def test_spellings_of_a_label_are_added_up() -> None:
    labels = Labels(win_or_tie=(1, 2), loss=(3,))
    evaluation = labels.evaluate([math.log(0.2), math.log(0.1), math.log(0.1)])
    assert evaluation.p_win_or_tie == pytest.approx(0.75)
    assert evaluation.label_mass == pytest.approx(0.4)


def test_impossible_spellings_add_nothing() -> None:
    labels = Labels(win_or_tie=(1, 2), loss=(3,))
    assert labels.evaluate([-math.inf, -math.inf, math.log(0.5)]).p_win_or_tie == 0.0


@pytest.mark.parametrize("reading", [[0.0], [math.nan, -1.0], [1.0, -1.0]])
def test_a_reading_that_makes_no_sense_is_a_failure_and_no_score(reading: list[float]) -> None:
    with pytest.raises(ScoringFailed):
        LABELS.evaluate(reading)


@pytest.mark.parametrize(("error", "busy"), [(EngineBusy("full"), True), (EngineFailed("lost"), False)])
async def test_the_engines_errors_become_failed_scoring(error: EngineError, *, busy: bool) -> None:
    engine = ScriptedEngine([], LoopClock(), scoring_failures=[error])
    with pytest.raises(ScoringFailed, match=str(error)) as caught:
        await SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS).score([Partial((7,))])
    assert caught.value.engine_busy is busy


async def test_a_model_that_answers_with_other_words_is_not_believed() -> None:
    engine = ScriptedEngine([], LoopClock(), label_mass=0.005)
    with pytest.raises(ScoringFailed, match="label mass"):
        await SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS).score([Partial((7,))])


async def test_a_read_out_is_taken_from_the_latest_token() -> None:
    scorer = ReadOutScorer(LABELS)
    assert scorer.readout_ids == LABELS.ids
    early, late = (math.log(0.1), math.log(0.3)), (math.log(0.3), math.log(0.1))
    scores = await scorer.score([Partial((7, 8), readouts=(early, late))])
    assert scores[0].value == pytest.approx(0.75)


async def test_the_read_out_judges_what_goes_on_and_self_evaluation_what_has_ended() -> None:
    engine = ScriptedEngine([], LoopClock(), judge=lambda _: 0.6)
    staged = StagedScorer(ReadOutScorer(LABELS), SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS))
    assert (staged.name, staged.readout_ids, staged.top_logprobs) == ("staged", LABELS.ids, None)
    reading = ((math.log(0.3), math.log(0.1)),)
    going_on, ended = Partial((7,), readouts=reading), Partial((8,), readouts=reading, final=True)
    scores = await staged.score([ended, going_on, ended, going_on])
    assert [score.value for score in scores] == pytest.approx([0.6, 0.75, 0.6, 0.75])
    assert engine.scored == [((*PROMPT, 8, *QUESTION),) * 2]
    await staged.score([going_on])
    assert len(engine.scored) == 1, "who has nothing to judge is not asked"
    assert await staged.score([]) == ()
    with pytest.raises(ScoringFailed, match="no read-out"):
        await staged.score([Partial((7,)), ended])


async def test_an_engine_too_busy_for_the_question_fails_staged_as_it_fails_self_evaluation() -> None:
    engine = ScriptedEngine([], LoopClock(), scoring_failures=[EngineBusy("later")])
    staged = StagedScorer(ReadOutScorer(LABELS), SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS))
    with pytest.raises(ScoringFailed, match="later") as caught:
        await staged.score([Partial((8,), final=True)])
    assert caught.value.engine_busy


@pytest.mark.parametrize("calibrated", ["early", "late"])
async def test_either_stage_may_need_the_tokens_log_probabilities(calibrated: str) -> None:
    calibration = CalibrationMap.from_plain(LOG_PROBABILITIES)
    early, late = (calibration if name == calibrated else None for name in ("early", "late"))
    asking = SelfEvaluationScorer(ScriptedEngine([], LoopClock()), PROMPT, QUESTION, LABELS, calibration=late)
    assert StagedScorer(ReadOutScorer(LABELS, early), asking).top_logprobs == 0


async def test_the_mean_log_probability_is_a_geometric_mean() -> None:
    scores = await MeanLogProbabilityScorer().score(
        [Partial((7, 8), logprobs=(math.log(0.5), math.log(0.125))), Partial(())]
    )
    assert [score.value for score in scores] == pytest.approx([0.25, 0.0])


@pytest.mark.parametrize("scorer", [ReadOutScorer(LABELS), MeanLogProbabilityScorer(), GroupConfidenceScorer()])
async def test_a_free_scorer_says_so_when_the_stream_carries_nothing_to_read(scorer: Scorer) -> None:
    with pytest.raises(ScoringFailed, match="stream carries no"):
        await scorer.score([Partial((7,))])


async def test_group_confidence_is_that_of_the_least_sure_window() -> None:
    sure, unsure = (0.0, -3 * LOG2), (-LOG2, -LOG2)
    tops = (sure, unsure, unsure, sure, sure)
    assert lowest_group_confidence(tops, 2) == pytest.approx(LOG2)
    assert lowest_group_confidence(tops, 100) == pytest.approx((3 * 1.5 * LOG2 + 2 * LOG2) / 5)
    scores = await GroupConfidenceScorer(window=2).score([Partial((1, 2, 3, 4, 5), top_logprobs=tops), Partial(())])
    assert [score.value for score in scores] == pytest.approx([LOG2 / (1 + LOG2), 0.0])


@given(logprobs, st.integers(min_value=1, max_value=40))
def test_a_window_slides_over_every_group(values: list[float], window: int) -> None:
    size = min(window, len(values))
    means = [-math.fsum(values[at : at + size]) / size for at in range(len(values) - size + 1)]
    assert lowest_group_confidence([(each,) for each in values], window) == pytest.approx(min(means), abs=1e-9)


@given(logprobs)
def test_a_masked_alternative_does_not_make_confidence_infinite(values: list[float]) -> None:
    assert math.isfinite(lowest_group_confidence([(each, -math.inf) for each in values], 4))


# Calibration


def calibrated(scorer: str, value: object) -> Scorer:
    found = CalibrationMap.from_plain(value)
    if scorer == "read_out":
        return ReadOutScorer(LABELS, found)
    engine = ScriptedEngine([], LoopClock(), judge=lambda _: 0.5)
    return SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS, calibration=found)


@pytest.mark.parametrize("scorer", ["self_evaluation", "read_out"])
async def test_a_calibrated_score_is_the_maps_and_the_raw_one_is_kept(scorer: str) -> None:
    even = ((math.log(0.4), math.log(0.4)),)
    partials = [
        Partial((7,), readouts=even),
        Partial((7,) * 40, readouts=even),
        Partial((7,), readouts=even, final=True),
    ]
    scores = await calibrated(scorer, STEEP).score(partials)
    assert [score.value for score in scores] == pytest.approx([0.45, 0.5, 0.5])  # 0.2 + 0.4 * 1.25 / 2
    assert [score.raw for score in scores] == pytest.approx([0.5, 0.5, 0.5])


async def test_without_a_map_the_raw_score_is_the_value() -> None:
    engine = ScriptedEngine([], LoopClock(), judge=lambda _: 0.3)
    (score,) = await SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS).score([Partial((7,))])
    assert score.value == score.raw == pytest.approx(0.3)
    (other,) = await MeanLogProbabilityScorer().score([Partial((7,), logprobs=(-0.1,))])
    assert other.raw is None


@pytest.mark.parametrize("scorer", ["self_evaluation", "read_out"])
async def test_a_map_that_reads_log_probabilities_has_them_asked_for_and_fails_without(scorer: str) -> None:
    assert calibrated(scorer, STEEP).top_logprobs is None
    wanting = calibrated(scorer, LOG_PROBABILITIES)
    assert wanting.top_logprobs == 0
    readouts = ((math.log(0.4), math.log(0.4)),)
    (score,) = await wanting.score([Partial((7,), (-1.0,), readouts=readouts, final=True)])
    assert score.value == pytest.approx(0.4)
    with pytest.raises(ScoringFailed, match="carries no log-probabilities for the calibration"):
        await wanting.score([Partial((7,), readouts=readouts)])


async def test_an_impossible_label_is_calibrated_all_the_same() -> None:
    engine = ScriptedEngine([], LoopClock(), judge=lambda _: 1.0)
    scorer = SelfEvaluationScorer(engine, PROMPT, QUESTION, LABELS, calibration=CalibrationMap.from_plain(STEEP))
    (score,) = await scorer.score([Partial((7,), final=True)])
    assert (score.value, score.raw) == (0.95, 1.0)
