"""Label rows, and what is minimised."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from adaptive.training.losses import ranking_loss, win_or_tie_loss  # noqa: E402 -- there may be no torch
from adaptive.training.rows import LabelRows  # noqa: E402


@pytest.fixture
def states() -> object:
    source = torch.Generator().manual_seed(3)
    spread = torch.linspace(0.1, 20, 16)
    return 5 + spread * torch.randn(50, 16, generator=source)


def trained(states: object, *, count: int = 3, sharpness: float = 1.0) -> LabelRows:
    torch.manual_seed(0)
    rows = LabelRows(16, count, sharpness=sharpness)
    rows.fit_normaliser(states)
    with torch.no_grad():
        rows.bias.copy_(torch.randn(2 * count))
    return rows


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_plain_rows_have_the_same_logits_without_a_normaliser(states: object, sharpness: float) -> None:
    rows = trained(states, sharpness=sharpness)
    weight, offsets = rows.plain()
    assert weight.shape == (6, 16)
    assert not weight.requires_grad
    torch.testing.assert_close(states @ weight.T + offsets, rows.logits(states), rtol=1e-4, atol=1e-4)


def test_log_odds_are_of_both_sides_summed(states: object) -> None:
    rows = trained(states)
    weight, offsets = rows.plain()
    shares = (states @ weight.T + offsets).softmax(1)
    win = shares[:, :3].sum(1)
    torch.testing.assert_close(rows(states), (win / (1 - win)).log(), rtol=1e-3, atol=1e-4)


def test_sharpness_stretches_the_logits_and_not_what_they_say(states: object) -> None:
    plain, sharp = trained(states, count=1), trained(states, count=1, sharpness=4.0)
    torch.testing.assert_close(plain(states), sharp(states))
    torch.testing.assert_close(4 * plain.logits(states), sharp.logits(states))


def test_the_normaliser_is_of_the_states_and_is_kept_with_the_rows(states: object) -> None:
    rows = trained(states)
    scaled = (states - rows.mean) / rows.spread
    torch.testing.assert_close(scaled.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.std(0), torch.ones(16))
    assert {"mean", "spread"} <= rows.state_dict().keys()
    rows.fit_normaliser(torch.ones(5, 16))  # all alike: no division by nothing
    assert torch.isfinite(rows(states)).all()


def test_a_soft_target_is_met_by_its_own_log_odds() -> None:
    targets = torch.tensor([0.0, 0.25, 1.0])
    log_odds = torch.tensor([-30.0, math.log(0.25 / 0.75), 30.0], requires_grad=True)
    loss = win_or_tie_loss(log_odds, targets)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 3
    assert loss.item() == pytest.approx(entropy, abs=1e-6)
    loss.backward()
    assert log_odds.grad.abs().max() < 1e-6
    assert float(win_or_tie_loss(torch.zeros(3), targets)) == pytest.approx(math.log(2))


def test_ranking_counts_the_pairs_whose_targets_differ() -> None:
    targets = torch.tensor([1.0, 0.5, 0.5])
    log_odds = torch.tensor([2.0, 1.0, -1.0])
    expected = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-3.0))) / 2
    assert float(ranking_loss(log_odds, targets)) == pytest.approx(expected)
    assert ranking_loss(-log_odds, targets) > ranking_loss(log_odds, targets)


def test_ranking_does_not_care_how_hard_the_prompt_is() -> None:
    targets = torch.tensor([1.0, 0.0])
    log_odds = torch.tensor([0.3, -0.2])
    assert float(ranking_loss(log_odds + 7, targets)) == pytest.approx(float(ranking_loss(log_odds, targets)))


@pytest.mark.parametrize("targets", [[1.0, 1.0, 1.0], [0.4], []])
def test_without_pairs_there_is_nothing_to_rank(targets: list[float]) -> None:
    log_odds = torch.ones(len(targets), requires_grad=True)
    loss = ranking_loss(log_odds, torch.tensor(targets))
    assert loss.item() == 0.0
    (loss + log_odds.sum()).backward()  # it can be added to another loss
