"""Which policy is proposed for a target, on candidates of which one knows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from adaptive.annealing import CONSTANT
from adaptive.evaluation.study import Prompt
from adaptive.evaluation.targets import (
    LEAST_PROMPTS,
    Aim,
    Measure,
    Proposal,
    Search,
    Target,
    TargetError,
    grid,
    halves,
    propose,
    thresholds_from,
)
from adaptive.policy import Checkpoint, Mode, Policy, ScorerName

from .recordings import CHECKPOINTS, SETUP, Made, prompt

GOOD, BAD = Made(0.9, 1.0), Made(0.2, 0.0)
SEARCH = Search(n=4, checkpoints=CHECKPOINTS, max_tokens=SETUP.max_tokens, resamples=50)
# One good candidate in four, and a scorer that knows it: at its threshold adaptive sampling stops at the good one.
KNOWN = [prompt(f"p{place}", [GOOD, BAD, BAD, BAD]) for place in range(24)]


def proposed(aim: Aim, amount: float, found: list[Prompt] = KNOWN, search: Search = SEARCH) -> Proposal:
    return propose(found, Target(aim, amount), search)


def test_all_of_the_gain_at_the_least_cost_is_adaptive_sampling_up_to_n() -> None:
    proposal = proposed(Aim.GAIN, 1.0)
    assert proposal.problem is None
    assert BAD.score < proposal.policy.threshold <= GOOD.score
    assert proposal.policy == Policy(
        mode=Mode.ADAPTIVE,
        n_max=4,
        threshold=proposal.policy.threshold,
        annealing=CONSTANT,
        checkpoints=(),
        scorer=ScorerName.SELF_EVALUATION,
    )
    # The good one is equally often the first, the second, and in the batch of two: 1, 2, 4 and 4 samples. Each has 10
    # tokens, and its score costs 10.
    expected = proposal.expected
    assert (expected.drawn.value, expected.tokens.value) == (2.75, 55.0)
    assert (expected.passed.value, expected.more.value, expected.share.value) == (1.0, 0.75, 1.0)
    assert (proposal.one_sample.passed.value, proposal.one_sample.tokens.value) == (0.25, 10.0)
    assert (proposal.best_of_n.drawn.value, proposal.best_of_n.tokens.value) == (4.0, 80.0)
    assert (proposal.chosen_on, proposal.told_on) == (12, 12)
    assert proposal.full_gain.low == 0.75


def test_a_share_of_the_gain_that_fewer_candidates_have_is_cheaper() -> None:
    # Of two the good one is among them half of the time, a third of what there is to gain. The worse is stopped at 4
    # tokens, and the last one left needs no score: 14 tokens and two scores, less than 35 of adaptive sampling.
    proposal = proposed(Aim.GAIN, 0.33)
    assert (proposal.policy.mode, proposal.policy.n_max) == (Mode.BEST_OF_N, 2)
    assert proposal.policy.checkpoints == (Checkpoint(4, 0.5),)
    assert (proposal.expected.drawn.value, proposal.expected.tokens.value) == (2.0, 34.0)
    assert proposal.expected.share.value == pytest.approx(1 / 3)
    assert proposed(Aim.GAIN, 0.34).policy.n_max == 4


def test_where_scores_are_free_those_that_look_worse_are_pruned_as_early_as_can_be() -> None:
    proposal = proposed(Aim.GAIN, 1.0, search=replace(SEARCH, prefill_weight=0.0))
    assert (proposal.policy.mode, proposal.policy.n_max) == (Mode.BEST_OF_N, 4)
    assert proposal.policy.checkpoints == (Checkpoint(4, 0.25),)
    assert (proposal.expected.share.value, proposal.expected.tokens.value) == (1.0, 10 + 3 * 4)


@pytest.mark.parametrize(
    ("aim", "amount", "n_max", "mode"),
    [
        (Aim.SAMPLES, 1.9, 2, Mode.ADAPTIVE),
        (Aim.SAMPLES, 2, 2, Mode.BEST_OF_N),
        (Aim.SAMPLES, 2.75, 4, Mode.ADAPTIVE),
        (Aim.SAMPLES, 8, 4, Mode.ADAPTIVE),
        (Aim.TOKENS, 54.9, 2, Mode.BEST_OF_N),
        (Aim.TOKENS, 55, 4, Mode.ADAPTIVE),
    ],
)
def test_a_budget_buys_the_best_quality_that_keeps_to_it_at_no_more_than_it_costs(
    aim: Aim, amount: float, n_max: int, mode: Mode
) -> None:
    proposal = proposed(aim, amount)
    assert proposal.problem is None
    assert (proposal.policy.mode, proposal.policy.n_max) == (mode, n_max)
    spent = proposal.expected.drawn if aim is Aim.SAMPLES else proposal.expected.tokens
    assert spent.value <= amount


def test_a_budget_that_no_policy_keeps_to_is_told_with_the_least_that_one_needs() -> None:
    proposal = proposed(Aim.TOKENS, 9)
    assert proposal.problem is not None
    assert "makes do with 9 tokens per prompt; the least is 20" in proposal.problem
    assert proposal.seen.tokens.value == 20


def test_a_budget_that_buys_nothing_is_told() -> None:
    proposal = proposed(Aim.SAMPLES, 1)
    assert proposal.problem is not None
    assert "No policy within 1 samples per prompt is better than one sample: the best has +0.0 points" in (
        proposal.problem
    )


@pytest.mark.parametrize("aim", [Aim.GAIN, Aim.SAMPLES])
def test_a_scorer_that_knows_nothing_has_nothing_to_share_out(aim: Aim) -> None:
    alike = [prompt(f"p{place}", [Made(0.5, float(place % 2))] * 4) for place in range(24)]
    proposal = proposed(aim, 1.0, alike)
    assert proposal.problem is not None
    assert "Full best of 4 by self_evaluation gains +0.0 [+0.0, +0.0] points of reward" in proposal.problem
    assert "on 24 prompts" in proposal.problem


def test_what_is_expected_is_told_by_prompts_that_did_not_choose() -> None:
    choosing, telling = halves(KNOWN, 0)
    wrong = [Made(0.9, 0.0), *[Made(0.2, 1.0)] * 3]
    found = [*choosing, *(prompt(each.task, wrong) for each in telling)]
    proposal = proposed(Aim.GAIN, 1.0, found)
    assert proposal.policy.n_max == 4
    assert (proposal.seen.more.value, proposal.seen.share.value) == (0.75, 1.0)
    assert proposal.expected.more.value == -0.75
    assert (proposal.one_sample.reward.value, proposal.expected.reward.value) == (0.75, 0.0)
    assert proposal.problem is not None  # on all prompts together best-of-n gains nothing


def test_thresholds_are_of_the_half_that_chooses() -> None:
    choosing, telling = halves(KNOWN, 0)
    other = [prompt(each.task, [Made(0.39, 1.0), *[Made(0.3, 0.0)] * 3]) for each in telling]
    known = thresholds_from(choosing, ScorerName.SELF_EVALUATION)
    assert known != thresholds_from([*choosing, *other], ScorerName.SELF_EVALUATION)
    assert proposed(Aim.GAIN, 1.0, [*choosing, *other]).policy.threshold in known


def test_the_measure_says_what_quality_is() -> None:
    # The graded reward knows a better candidate than the one that passes.
    half = Made(0.9, 0.9)
    found = [prompt(f"p{place}", [half, Made(0.2, 0.5), BAD, BAD]) for place in range(20)]
    assert proposed(Aim.GAIN, 1.0, found).problem is None
    problem = proposed(Aim.GAIN, 1.0, found, replace(SEARCH, measure=Measure.PASSED)).problem
    assert problem is not None
    assert "points of passed" in problem


def test_another_scorer_is_that_of_all_policies() -> None:
    proposal = proposed(Aim.GAIN, 1.0, search=replace(SEARCH, scorer=ScorerName.GROUP_CONFIDENCE))
    assert proposal.policy.scorer is ScorerName.GROUP_CONFIDENCE
    assert proposal.problem is not None  # it says 0.5 of everything
    own = [
        replace(each, candidates=tuple(replace(one, scores=one.scores[:1]) for one in each.candidates))
        for each in KNOWN
    ]
    with pytest.raises(TargetError, match="scored by read_out; name another scorer"):
        proposed(Aim.GAIN, 1.0, own, replace(SEARCH, scorer=ScorerName.READ_OUT))


def test_staged_may_prune_by_the_read_out_and_stops_and_chooses_by_self_evaluation() -> None:
    """The read-out tells the good one and one bad one from the others, self-evaluation those two apart."""
    likely, unlikely = (replace(BAD, score=score, read_out=read_out) for score, read_out in ((0.2, 0.8), (0.95, 0.1)))
    found = [prompt(f"p{place}", [replace(GOOD, read_out=0.9), likely, unlikely, unlikely]) for place in range(24)]
    staged = replace(SEARCH, scorer=ScorerName.STAGED)
    proposal = proposed(Aim.SAMPLES, 4, found, staged)
    assert (proposal.policy.scorer, proposal.policy.n_max) == (ScorerName.STAGED, 4)
    assert proposal.policy.checkpoints
    assert proposal.expected.passed.value == 1.0
    assert thresholds_from(found, ScorerName.STAGED) == thresholds_from(found, ScorerName.SELF_EVALUATION)
    alone = proposed(Aim.SAMPLES, 4, found)
    assert alone.seen.passed.value < 1.0


def test_the_same_prompts_in_any_order_give_the_same_proposal() -> None:
    source = random.Random(1)  # noqa: S311 -- scores, no secret
    found = [
        prompt(
            f"p{place}",
            [Made(round(source.random(), 2), float(source.random() < 0.4), source.randint(2, 16)) for _ in range(5)],
        )
        for place in range(20)
    ]
    search = replace(SEARCH, n=5)
    shuffled = source.sample(found, len(found))
    assert proposed(Aim.SAMPLES, 3, shuffled, search) == proposed(Aim.SAMPLES, 3, found, search)


def test_halves_share_no_prompt_and_are_as_large_as_each_other() -> None:
    found = [*KNOWN, replace(KNOWN[0], task="the same again"), replace(KNOWN[1], task="this one too")]
    choosing, telling = halves(found, 0)
    digests = [{each.candidates[0].prompt for each in half} for half in (choosing, telling)]
    assert not digests[0] & digests[1]
    assert len(choosing) + len(telling) == 26
    assert abs(len(choosing) - len(telling)) <= 2
    assert halves(found, 1)[0] != choosing


def test_the_grid_prunes_within_the_reply_and_draws_no_more_than_is_recorded() -> None:
    tried = grid(replace(SEARCH, checkpoints=(4, 8, 16, 32)), (0.2, 0.9))
    assert len(set(tried)) == len(tried) == 2 * (1 + 3 * 2) * 3
    assert {policy.n_max for policy in tried} == {2, 4}
    assert {each.tokens for policy in tried for each in policy.checkpoints} == {4, 8}
    assert (Checkpoint(4, 0.25), Checkpoint(8, 0.25)) in {policy.checkpoints for policy in tried}


def test_what_cannot_be_sought_is_said() -> None:
    with pytest.raises(TargetError, match=f"record at least {LEAST_PROMPTS} different ones"):
        proposed(Aim.GAIN, 0.5, KNOWN[: LEAST_PROMPTS - 1])
    with pytest.raises(TargetError, match="record at least"):
        proposed(Aim.GAIN, 0.5, [KNOWN[0]] * LEAST_PROMPTS)
    with pytest.raises(TargetError, match="needs as many of each prompt"):
        proposed(Aim.GAIN, 0.5, search=replace(SEARCH, n=5))
    for aim, amount in ((Aim.GAIN, 0.0), (Aim.GAIN, 1.1), (Aim.SAMPLES, 0.5), (Aim.TOKENS, float("inf"))):
        with pytest.raises(TargetError, match=f"^{aim.value} is "):
            Target(aim, amount)


def test_thresholds_are_quantiles_that_a_score_at_them_reaches() -> None:
    scores = [place / 7 for place in range(4)]
    found = [prompt("p", [Made(score) for score in scores])]
    thresholds = thresholds_from(found, ScorerName.SELF_EVALUATION)
    assert len(thresholds) == 10
    assert list(thresholds) == sorted(thresholds)
    assert 0 < thresholds[0] < scores[1] < thresholds[-1] <= scores[-1]
    (only,) = thresholds_from([prompt("p", [Made(2 / 3)] * 4)], ScorerName.SELF_EVALUATION)
    assert 0.66666 < only <= 2 / 3
