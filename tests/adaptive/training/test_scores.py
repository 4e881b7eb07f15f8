"""Where answers are scored, and what is written of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from adaptive.training.examples import Group  # noqa: E402 -- there may be no torch
from adaptive.training.packing import Place  # noqa: E402
from adaptive.training.scored import read_scored  # noqa: E402
from adaptive.training.scores import label_log_odds, places_of, scored  # noqa: E402
from tests.adaptive.training.groups import answer, group  # noqa: E402

SHORT, LONG = tuple([-0.5] * 3), tuple(-0.1 * place for place in range(1, 41))
GROUP = group([1.0, 0.0, 0.0], [SHORT, LONG, ()])


def test_an_answer_is_scored_at_the_lengths_it_reaches_and_at_its_end() -> None:
    assert places_of(GROUP, (0, 16, 32, 64)) == (
        Place(0, 0),
        Place(0, 3),
        Place(1, 16),
        Place(1, 32),
        Place(1, 40),
        Place(2, 0),
    )
    cut = Group(
        **{name: getattr(GROUP, name) for name in GROUP.__slots__} | {"answers": (answer(1.0, LONG, cuts=(7, 16, 40)),)}
    )
    assert [place.tokens for place in places_of(cut, (16,))] == [16, 40]


def test_every_scored_example_says_what_is_known_of_its_answer_up_to_there() -> None:
    def score(_: Group, places: Sequence[Place]) -> Any:
        assert not torch.is_grad_enabled()
        return torch.tensor([place.answer + place.tokens / 100 for place in places])

    found = list(scored([GROUP], score, (0, 16)))
    assert len(found) == len(places_of(GROUP, (0, 16)))
    by_place = {(each.answer, each.reading.tokens): each for each in found}
    part = by_place[1, 16].reading
    assert part.log_odds == pytest.approx(1.16)
    assert not part.final
    assert part.mean_log_probability == pytest.approx(-0.85)
    assert part.least_log_probability == pytest.approx(-1.6)
    assert by_place[1, 40].reading.final
    assert by_place[0, 0].reading.mean_log_probability == 0.0
    assert not by_place[0, 0].reading.final
    empty = by_place[2, 0]
    assert empty.reading.final
    assert (empty.win_or_tie, empty.passed) == (0.5, False)
    assert (by_place[0, 3].win_or_tie, by_place[0, 3].passed) == (1.0, True)
    written = io.StringIO("".join(each.to_line() + "\n" for each in found))
    assert read_scored(written, "here") == tuple(found)


def test_log_odds_of_rows_are_of_rounded_rows_and_logits() -> None:
    states = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    rows = torch.tensor([[20.003, 10.0], [1.0, 0.0], [20.0, 10.0], [1.0, 0.0]])
    assert label_log_odds(states, rows).item() == 0.0  # what bfloat16 cannot tell apart is the same
    assert label_log_odds(states.float(), rows).item() == pytest.approx(0.003, abs=1e-4)
    assert label_log_odds(states, rows).dtype == torch.float32
