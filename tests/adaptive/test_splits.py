"""What a prompt is for, by its text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from adaptive.splits import SHARES, Shares, Split, split_of, text_of


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


PROMPTS = [user(f"question {number}") for number in range(4000)]


def test_shares_are_kept() -> None:
    counted = Counter(split_of(prompt, Shares(0.5, 0.2, 0.3)) for prompt in PROMPTS)
    assert counted[Split.TRAIN] / 4000 == pytest.approx(0.5, abs=0.03)
    assert counted[Split.CALIBRATION] / 4000 == pytest.approx(0.2, abs=0.03)
    nothing = {split_of(prompt, Shares(0.0, 1.0, 0.0)) for prompt in PROMPTS}
    assert nothing == {Split.CALIBRATION}


def test_a_prompt_never_leaves_train_when_that_grows() -> None:
    less, more = Shares(0.5, 0.2, 0.3), Shares(0.7, 0.1, 0.2)
    trained = [prompt for prompt in PROMPTS if split_of(prompt, less) is Split.TRAIN]
    assert trained
    assert {split_of(prompt, more) for prompt in trained} == {Split.TRAIN}


def test_prompts_stay_where_data_that_is_written_already_has_them() -> None:
    """The hash must not change: a prompt that was trained on would then be one to test with."""
    texts = ("What is 7 + 8?", "What is 2 times 3?", "What is 2 + 2?", "Say \u2028.", "\ud800")
    assert [split_of(user(text)).value for text in texts] == ["train", "calibration", "test", "train", "train"]
    ruled = [{"role": "system", "content": "Be brief."}, *user("What is 7 + 8?")]
    assert text_of(ruled) == "Be brief.\n\nWhat is 7 + 8?"
    assert split_of(ruled) is split_of(user("Be brief.\n\nWhat is 7 + 8?"))


def test_contents_that_are_no_text_are_told_apart() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in "ab"]
    assert len({text_of([part]) for part in parts}) == 2
    assert text_of([{"role": "assistant", "tool_calls": []}]) == "null"
    assert split_of([{"content": [{"b": 1, "a": 2}]}]) is split_of([{"content": [{"a": 2, "b": 1}]}])


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (0.0, 0.0, 0.0)])
def test_shares_that_are_no_whole_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="whose sum is 1"):
        Shares(*shares)


def test_shares_are_written_as_they_are_read() -> None:
    assert Shares(*map(float, str(SHARES).split(","))) == SHARES
