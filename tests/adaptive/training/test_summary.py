"""The counts of a data file, as numbers and as the tables of the data card."""

from __future__ import annotations

from dataclasses import replace

from adaptive.splits import Split
from adaptive.training.summary import Summary, as_markdown
from tests.adaptive.training.groups import answer, group


def summary() -> Summary:
    made = Summary()
    made.add(group([0.0, 1.0, 1.0, 0.0], id="a"))
    made.add(group([0.0, 0.0], id="b", split=Split.TEST))
    odd = group([0.5, 1.0], id="c", family="lists|x")
    long = answer(0.5, (-1.0,) * 9, 0.0, cuts=(2, 9), finish_reason="length")
    made.add(replace(odd, constitution="brief", answers=(long, odd.answers[1])))
    return made


def test_everything_is_counted_by_family_and_split() -> None:
    plain = summary().plain()
    every = plain["all"]
    assert (every["prompts"], every["prompts_that_teach"], every["prompts_that_cannot_teach"]) == (3, 2, 1)
    assert (every["answers"], every["examples"], every["answer_tokens"], every["prompt_tokens"]) == (8, 9, 23, 9)
    assert every["prompts_with_constitution"] == 1
    assert every["pass_rate"] == 3 / 8
    assert every["oracle_rate"] == 2 / 3
    assert every["tied_pairs"] == 3 / 8  # two of the six pairs of a, the one of b, none of c
    assert every["cut_by_max_tokens"] == 1 / 8
    assert every["answer_length_quantiles"]["0.5"] == 2
    assert every["answer_length_quantiles"]["1"] == 9
    assert plain["families"]["sums"]["prompts_by_split"] == {"train": 1, "calibration": 0, "test": 1}
    assert plain["splits"]["test"]["pass_rate"] == 0.0
    assert plain["splits"]["calibration"]["pass_rate"] is None


def test_labels_are_counted_in_bins_and_one_is_in_the_last() -> None:
    # 1/3 twice and 1 twice of a, 1 twice of b, 0 and 1 of c
    assert summary().plain()["all"]["win_or_tie_histogram"] == [1, 0, 0, 2, 0, 0, 0, 0, 0, 5]


def test_the_card_has_a_row_for_each_family_and_all() -> None:
    lines = as_markdown(summary()).splitlines()
    assert "| sums | 2 | 1 | 6 | 6 | 12 | 2 | 0.0 | 33.3 | 50.0 | 42.9 | 1 | 0 | 1 |" in lines
    assert any(line.startswith("| lists\\|x | 1 |") for line in lines)
    assert any(line.startswith("| all | 3 |") for line in lines)
    assert "| calibration | 0 | 0 | 0 | 0 | 0 | - | - | - | - | - |" in lines


def test_nothing_at_all_is_a_card_too() -> None:
    assert "| all | 0 |" in as_markdown(Summary())
