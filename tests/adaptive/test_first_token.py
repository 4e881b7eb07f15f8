"""When plain best-of-N would have had its first token."""

from __future__ import annotations

from adaptive.first_token import PlainFirstToken, plain_first_token
from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.trace import Trace

from .runs import constant, make_engine, play, script

PLAIN = Policy(mode=Mode.BEST_OF_N, n_max=3, checkpoints=())


def test_a_plain_run_knows_it_is_its_own_end() -> None:
    played = play(make_engine([script(c, 4 + c) for c in range(3)], score_s=0.5), PLAIN, stream=True)
    assert plain_first_token(played.outcome.trace) == PlainFirstToken(6.5, estimated=False)


def test_where_candidates_were_pruned_it_is_the_longest_that_was_seen_and_a_score() -> None:
    policy = Policy(mode=Mode.BEST_OF_N, n_max=2, checkpoints=(Checkpoint(2, 0.5),))
    played = play(make_engine([script(c, 9) for c in range(2)], constant(0.9, 0.1)), policy, stream=True)
    assert plain_first_token(played.outcome.trace) == PlainFirstToken(9.0, estimated=True)


def test_where_fewer_were_drawn_one_after_the_other_it_is_one_round_and_a_score() -> None:
    policy = Policy(n_max=3, threshold=0.8, checkpoints=())
    played = play(make_engine([script(0, 4), script(1, 6)], constant(0.1, 0.9), score_s=0.5), policy)
    assert played.took_s == 11.0
    assert plain_first_token(played.outcome.trace) == PlainFirstToken(6.5, estimated=True)


def test_a_run_that_drew_nothing_says_nothing() -> None:
    assert plain_first_token(Trace(PLAIN, 1, 3, (), (), (), 0.0)) is None
