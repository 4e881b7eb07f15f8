"""What a study says of recorded candidates."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings

from adaptive.evaluation.recording import Recording
from adaptive.evaluation.statistics import Estimate
from adaptive.evaluation.strategies import Family, sizes
from adaptive.evaluation.study import Design, PairAccuracy, Prompt, Row, Study, orders, study, thresholds_from
from adaptive.evaluation.verifiers import Verdict
from adaptive.policy import ScorerName
from adaptive.replay import ReplayCandidate, ReplayScore, replay

from .recordings import CHECKPOINTS, SETUP, Made, prompt, prompts

DESIGN = Design(n=5, checkpoints=CHECKPOINTS, max_tokens=SETUP.max_tokens, orders=10, resamples=20)


def studied(found: Sequence[Prompt], design: Design = DESIGN) -> Study:
    return study(found, design, min_label_mass=0.01)


def rows(of: Study, family: Family) -> list[Row]:
    return [row for row in of.rows if row.strategy.family is family]


def pairs(of: Study, scorer: str, checkpoint: int | None, better: str = "passed") -> PairAccuracy:
    (found,) = (
        each for each in of.pairs if (each.scorer, each.checkpoint, each.better) == (scorer, checkpoint, better)
    )
    return found


# What holds for all candidates.


@settings(max_examples=10)
@given(prompts())
def test_the_oracle_bounds_every_choice_and_gains_with_each_sample(found: list[Prompt]) -> None:
    result = studied(found)
    oracle = rows(result, Family.ORACLE)
    for family in (Family.RANDOM, Family.SELF_EVALUATION, Family.MEAN_LOG_PROBABILITY, Family.GROUP_CONFIDENCE):
        for bound, row in zip(oracle, rows(result, family), strict=True):
            assert bound.strategy.label == row.strategy.label
            assert row.passed.value <= bound.passed.value + 1e-9
            assert row.reward.value <= bound.reward.value + 1e-9
    rewards = [row.reward.value for row in oracle]
    assert rewards == sorted(rewards)
    assert max(row.reward.value for row in result.rows) <= oracle[-1].reward.value + 1e-9


@settings(max_examples=10)
@given(prompts())
def test_one_sample_is_the_mean_of_all_candidates_and_so_is_a_random_pick(found: list[Prompt]) -> None:
    result = studied(found)
    (one,) = rows(result, Family.ONE_SAMPLE)
    verdicts = [verdict for each in found for verdict in each.verdicts]
    assert one.reward.value == pytest.approx(sum(verdict.reward for verdict in verdicts) / len(verdicts))
    assert one.more_passed.value == 0
    for row in rows(result, Family.RANDOM):
        assert row.reward.value == pytest.approx(one.reward.value)


@settings(max_examples=10)
@given(prompts())
def test_cost_grows_with_n_and_with_the_threshold_and_pruning_generates_less(found: list[Prompt]) -> None:
    result = studied(found, replace(DESIGN, thresholds=(0.0, 0.3, 0.6, 1.0)))
    for family in (Family.ORACLE, Family.RANDOM, Family.SELF_EVALUATION):
        totals = [row.total.value for row in rows(result, family)]
        assert totals == sorted(totals)
    drawn = [row.drawn.value for row in rows(result, Family.ADAPTIVE_SELF_EVALUATION)]
    assert drawn == sorted(drawn)
    full = rows(result, Family.SELF_EVALUATION)[-1]
    for row in rows(result, Family.PRUNED_SELF_EVALUATION):
        assert row.generated.value <= full.generated.value
        assert row.drawn.value == 5


@settings(max_examples=10)
@given(prompts())
def test_the_order_of_recording_does_not_matter(found: list[Prompt]) -> None:
    shuffled = []
    for each in found:
        order = random.Random(3).sample(range(5), 5)  # noqa: S311 -- a shuffle
        shuffled.append(
            Prompt(each.task, tuple(each.candidates[i] for i in order), tuple(each.verdicts[i] for i in order))
        )
    assert studied(shuffled) == studied(found)


# What holds for candidates that one knows.

GOOD_LAST = prompt("a", [Made(0.1, 0.0), Made(0.2, 0.0), Made(0.3, 0.5), Made(0.4, 0.5), Made(0.9, 1.0)])


def test_a_scorer_that_is_always_right_realises_all_of_the_gain() -> None:
    result = studied([GOOD_LAST])
    best = rows(result, Family.SELF_EVALUATION)[-1]
    (one,) = rows(result, Family.ONE_SAMPLE)
    assert (one.passed.value, one.reward.value) == (0.2, 0.4)
    assert (best.passed.value, best.gain_passed.value, best.gain_reward.value) == (1.0, 1.0, 1.0)
    assert (best.generated.value, best.scoring.value, best.total.value) == (50, 50, 100)
    assert pairs(result, "self_evaluation", None).accuracy.value == 1.0
    assert pairs(result, "self_evaluation", None).pairs == 4
    assert pairs(result, "self_evaluation", None, "reward").pairs == 8
    assert pairs(result, "mean_log_probability", None).accuracy.value == 0.5  # all ties


def test_a_threshold_that_every_candidate_reaches_draws_one_and_one_that_none_does_draws_all() -> None:
    found = [prompt("a", [Made(0.5, 1.0), Made(0.5), Made(0.5), Made(0.5), Made(0.5)])]
    low, high = rows(studied(found, replace(DESIGN, thresholds=(0.0, 1.0))), Family.ADAPTIVE_SELF_EVALUATION)
    assert (low.drawn.value, low.scoring.value) == (1.0, 10)
    assert high.drawn.value == 5.0


def test_pruning_at_a_checkpoint_stops_those_that_look_worse_there() -> None:
    lie = {4: 0.0, 8: 1.0}
    found = [prompt("a", [Made(1.0, 1.0, at=lie), *(Made(0.4, at={4: 0.4, 8: 0.4}) for _ in range(4))])]
    by_name = {row.strategy.label: row for row in rows(studied(found), Family.PRUNED_SELF_EVALUATION)}
    assert by_name["50% at 4"].passed.value == 0.0
    assert by_name["50% at 8"].passed.value == 1.0
    assert by_name["50% at 4"].generated.value == 3 * 10 + 2 * 4
    assert by_name["25% at 8"].generated.value == 2 * 10 + 3 * 8
    assert by_name["50% at 8"].scoring.value == 10 * (5 + 3)


def test_a_prompt_token_can_be_worth_less_than_a_generated_one() -> None:
    best = rows(studied([GOOD_LAST], replace(DESIGN, prefill_weight=0.1)), Family.SELF_EVALUATION)[-1]
    assert best.total.value == 50 + 0.1 * 50


def test_a_candidate_whose_score_could_not_be_had_ranks_behind_those_with_one() -> None:
    unscored = replace(GOOD_LAST.candidates[4], scores=())
    found = replace_candidate(GOOD_LAST, 4, unscored)
    best = rows(studied([found]), Family.SELF_EVALUATION)[-1]
    assert (best.passed.value, best.reward.value) == (0.0, 0.5)
    assert pairs(studied([found]), "self_evaluation", None).pairs == 0


def replace_candidate(given_prompt: Prompt, place: int, candidate: object) -> Prompt:
    candidates = list(given_prompt.candidates)
    candidates[place] = candidate  # type: ignore[call-overload]
    return Prompt(given_prompt.task, tuple(candidates), given_prompt.verdicts)


def test_without_anything_to_gain_there_is_no_share_of_the_gain() -> None:
    best = rows(studied([prompt("a", [Made(0.5)] * 5)]), Family.SELF_EVALUATION)[-1]
    assert math.isnan(best.gain_passed.value)
    assert (best.gain_passed.low, best.gain_passed.high) == (None, None)


# Against full best-of-n by the same scorer.


def two_judges(count: int = 12) -> list[Prompt]:
    """One of five replies passes: self-evaluation knows, and the read-out says the opposite."""
    made = [Made(0.9, 1.0, read_out=0.1), *(Made(0.2 + place / 10, 0.0, read_out=0.8) for place in range(4))]
    return [prompt(f"p{place}", made) for place in range(count)]


def test_the_share_is_of_the_gain_of_best_of_n_by_the_same_scorer() -> None:
    result = studied(two_judges(), replace(DESIGN, thresholds=(0.0, 0.9)))
    low, high = rows(result, Family.ADAPTIVE_SELF_EVALUATION)
    full = rows(result, Family.SELF_EVALUATION)[-1]
    assert full.share_passed == full.kept_passed == Estimate(1.0, 1.0, 1.0)
    assert low.share_passed is not None
    assert low.share_passed.value == pytest.approx(0.0)  # any reply reaches it: the first is returned
    assert high.share_passed is not None
    assert high.share_passed.value == 1.0
    assert high.more_passed.value == pytest.approx(0.8)
    assert high.drawn.value < 5
    pair = rows(result, Family.SELF_EVALUATION)[0]
    assert pair.share_passed is not None
    assert pair.share_passed.value == pytest.approx((0.4 - 0.2) / (1.0 - 0.2))  # of two, one passes in 2 of 5
    assert pair.kept_passed is not None
    assert pair.kept_passed.value == pytest.approx(0.4)


def test_where_best_of_n_gains_nothing_there_is_no_share() -> None:
    result = studied(two_judges())
    for family in (Family.READ_OUT, Family.ADAPTIVE_READ_OUT, Family.MEAN_LOG_PROBABILITY):
        for row in rows(result, family):
            assert row.share_passed is None
            assert row.share_reward is None
    (one,) = rows(result, Family.ONE_SAMPLE)
    for row in (one, *rows(result, Family.ORACLE), *rows(result, Family.RANDOM)):
        assert (row.share_passed, row.kept_passed) == (None, None)


def test_a_gain_that_may_be_none_has_no_share() -> None:
    right, wrong = prompt("a", [Made(0.9, 1.0), *[Made(0.1)] * 4]), prompt("b", [*[Made(0.9)] * 4, Made(0.1, 1.0)])
    result = studied([right, right, right, wrong, wrong], replace(DESIGN, resamples=200))
    full = rows(result, Family.SELF_EVALUATION)[-1]
    assert full.more_passed.value > 0
    assert full.more_passed.low is not None
    assert full.more_passed.low <= 0
    assert full.share_passed is None


def test_what_is_pruned_is_counted_and_what_is_kept_is_of_best_of_n() -> None:
    lie = {4: 0.0, 8: 1.0}
    found = [prompt("a", [Made(1.0, 1.0, at=lie), *(Made(0.4, at={4: 0.4, 8: 0.4}) for _ in range(4))])]
    by_name = {row.strategy.label: row for row in rows(studied(found), Family.PRUNED_SELF_EVALUATION)}
    assert [by_name[label].pruned.value for label in ("50% at 4", "25% at 8")] == [0.4, 0.6]
    assert [row.kept_passed and row.kept_passed.value for row in by_name.values()] == [0.0, 0.0, 1.0, 1.0]
    full = rows(studied(found), Family.SELF_EVALUATION)[-1]
    assert full.pruned.value == 0
    assert full.scoring_s.value == pytest.approx(5 * 0.1)


def test_staged_prunes_by_the_read_out_and_chooses_by_self_evaluation() -> None:
    """The read-out tells two of four apart from the others, self-evaluation which of those two: together they know."""
    made = [
        Made(0.9, 1.0, at={4: 0.1, 8: 0.1}, read_out=0.8),
        Made(0.3, 0.0, at={4: 0.9, 8: 0.9}, read_out=0.9),
        Made(1.0, 0.0, at={4: 0.9, 8: 0.9}, read_out=0.1),
        Made(0.2, 0.0, at={4: 0.2, 8: 0.2}, read_out=0.2),
    ]
    result = studied([prompt(f"p{place}", made) for place in range(3)], replace(DESIGN, n=4))

    def halved(family: Family) -> Row:
        return next(row for row in rows(result, family) if row.strategy.label == "50% at 4")

    staged, alone = halved(Family.PRUNED_STAGED), halved(Family.PRUNED_SELF_EVALUATION)
    assert (staged.passed.value, alone.passed.value, halved(Family.PRUNED_READ_OUT).passed.value) == (1.0, 0.0, 0.0)
    assert staged.generated.value == 2 * 10 + 2 * 4
    assert (staged.scoring.value, alone.scoring.value) == (2 * 10, (4 + 2) * 10)  # 9 computed and the label
    full = rows(result, Family.SELF_EVALUATION)[-1]
    assert full.passed.value == 0.0  # it takes the third, which the read-out has pruned
    # Whatever would be self-evaluation under another name is left out.
    named = [row.strategy for row in result.rows if row.strategy.policy.scorer is ScorerName.STAGED]
    assert {each.family for each in named} == {Family.PRUNED_STAGED}
    assert ScorerName.STAGED not in {each.scorer for each in result.pairs} | {each.scorer for each in result.scores}


@settings(max_examples=10)
@given(prompts())
def test_what_staged_keeps_is_of_full_best_of_n_by_self_evaluation(found: list[Prompt]) -> None:
    result = studied(found)
    full = rows(result, Family.SELF_EVALUATION)[-1]
    for row in rows(result, Family.PRUNED_STAGED):
        of_both = [figure.value for figure in (row.reward, full.reward)]
        assert row.kept_reward is not None
        assert row.kept_reward.value == pytest.approx(of_both[0] / of_both[1] if of_both[1] else math.nan, nan_ok=True)
        assert row.scoring.value <= full.scoring.value


def test_only_those_who_judged_are_studied_and_a_threshold_needs_a_probability() -> None:
    design = replace(DESIGN, scorers=(ScorerName.READ_OUT, ScorerName.MEAN_LOG_PROBABILITY))
    result = studied(two_judges(2), design)
    families = {row.strategy.family for row in result.rows}
    assert families == {
        Family.ONE_SAMPLE,
        Family.ORACLE,
        Family.RANDOM,
        Family.READ_OUT,
        Family.MEAN_LOG_PROBABILITY,
        Family.ADAPTIVE_READ_OUT,
        Family.PRUNED_READ_OUT,
        Family.PRUNED_MEAN_LOG_PROBABILITY,
    }
    assert set(result.thresholds) == {ScorerName.READ_OUT}
    assert {each.scorer for each in result.pairs} == {each.scorer for each in result.scores} == set(design.scorers)


def test_each_scorer_has_thresholds_among_its_own_scores() -> None:
    thresholds = studied(two_judges()).thresholds
    assert thresholds[ScorerName.SELF_EVALUATION][0] == 0.2
    assert thresholds[ScorerName.READ_OUT][0] == 0.1


def test_candidates_that_are_drawn_together_are_compared_in_any_order_with_the_same_result() -> None:
    """One order is then enough, unless scores are equal; whoever draws in turn is tried in all of them."""
    source = random.Random(5)  # noqa: S311 -- made up figures
    for equal in (False, True):
        made = [
            Made(
                0.5 if equal else source.random(),
                float(place % 2),
                tokens=source.randint(9, 16),
                at=dict.fromkeys(CHECKPOINTS, 0.4) if equal else {at: source.random() for at in CHECKPOINTS},
            )
            for place in range(5)
        ]
        found = prompt("a", made)
        by_name = {row.strategy.name: row for row in studied([found], replace(DESIGN, orders=60)).rows}
        for name in ("best of n, self-evaluation: n=5", "pruned, self-evaluation: 25% at 4"):
            replayed = [
                replay(by_name[name].strategy.policy, [replayable(found.candidates[place]) for place in order])
                for order in itertools.permutations(range(5))
            ]
            rewards = [
                found.verdicts[order[each.returned]].reward
                for each, order in zip(replayed, itertools.permutations(range(5)), strict=True)
            ]
            assert len(set(rewards)) == (2 if equal else 1)
            assert by_name[name].reward.value == pytest.approx(fmean(rewards), abs=0.1 if equal else 1e-9)
            assert by_name[name].scoring.value == pytest.approx(fmean(each.scoring_tokens for each in replayed))


def replayable(found: Recording) -> ReplayCandidate:
    scores = {each.tokens: ReplayScore(each.value, 10) for each in found.scores if each.scorer == "self_evaluation"}
    return ReplayCandidate(found.tokens, scores[found.tokens], scores)


def test_the_default_policy_is_studied_where_its_checkpoints_were_recorded() -> None:
    (row,) = rows(studied([GOOD_LAST]), Family.DEFAULT)  # 16 tokens: no reply comes to its first checkpoint
    assert row.strategy.policy.threshold == 0.9
    assert rows(studied([GOOD_LAST], replace(DESIGN, max_tokens=65)), Family.DEFAULT) == []


def test_intervals_are_over_prompts_and_say_how_many() -> None:
    same = studied([GOOD_LAST])
    (one,) = rows(same, Family.ONE_SAMPLE)
    assert one.passed == Estimate(0.2, 0.2, 0.2)  # one prompt: nothing to resample
    other = prompt("b", [Made(0.5)] * 5)
    both = studied([GOOD_LAST, other], replace(DESIGN, resamples=200))
    (one,) = rows(both, Family.ONE_SAMPLE)
    assert both.prompts == 2
    assert (one.passed.low, one.passed.high) == (0.0, 0.2)
    assert pairs(both, "self_evaluation", None).prompts == 1


def test_scores_are_summed_up_with_their_label_mass() -> None:
    found = [prompt("a", [Made(0.2, label_mass=0.001), Made(0.4), Made(0.6), Made(0.8), Made(1.0, tokens=3)])]
    first, _, whole = (each for each in studied(found).scores if each.scorer == "self_evaluation")
    assert (first.checkpoint, first.scores, whole.checkpoint, whole.scores) == (4, 4, None, 5)
    assert whole.median == 0.6
    assert whole.below_limit == pytest.approx(0.2)
    assert whole.computed_tokens == 9
    assert whole.took_s == pytest.approx(0.1)
    (read_out,) = (each for each in studied(found).scores if (each.scorer, each.checkpoint) == ("read_out", None))
    assert math.isnan(read_out.below_limit)  # its labels are meant to have no mass
    assert read_out.computed_tokens == 0


def test_thresholds_lie_among_the_scores_that_were_seen() -> None:
    found = thresholds_from([GOOD_LAST])
    assert found[-1] == 0.9
    assert all(0.1 <= each <= 0.9 for each in found)


def test_few_candidates_are_tried_in_every_order_and_many_in_balanced_ones() -> None:
    assert len(set(orders(4, 1, 0))) == 24
    found = orders(6, 30, 0)
    assert len(found) == 30
    assert orders(6, 30, 0) == found
    assert len(orders(6, 1, 0)) == 6
    for place in range(6):
        assert sorted(order[place] for order in found) == sorted(list(range(6)) * 5)


def test_sizes_double_and_end_with_all() -> None:
    assert sizes(8) == (1, 2, 4, 8)
    assert sizes(6) == (1, 2, 4, 6)
    assert sizes(2) == (1, 2)


def test_too_few_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="5 candidates"):
        studied([])
    few = Prompt("a", GOOD_LAST.candidates[:4], (Verdict(0.0, passed=False),) * 4)
    with pytest.raises(ValueError, match="5 candidates"):
        studied([few])
