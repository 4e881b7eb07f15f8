"""Groups, their files, and what is derived from rewards and lengths."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.training import parquet
from adaptive.training.examples import (
    Group,
    GroupFile,
    JsonlWriter,
    cuts,
    examples,
    win_or_tie_shares,
)
from tests.adaptive.training.groups import answer, group

ODD = replace(
    group([0.0, 1.0], id="odd\u2028id"),
    messages=({"role": "user", "content": [{"type": "text", "text": "a\nb\u2028\x85c \U0001f600"}]},),
    constitution="brief",
)


def test_a_share_counts_the_others_that_are_beaten_or_tied() -> None:
    assert win_or_tie_shares([1.0, 0.0, 0.0]) == (1.0, 0.5, 0.5)
    assert win_or_tie_shares([0.5, 0.5]) == (1.0, 1.0)
    assert win_or_tie_shares([3.0, 2.0, 1.0, 0.0]) == pytest.approx((1.0, 2 / 3, 1 / 3, 0.0))


def test_rewards_that_are_nearly_equal_are_a_tie() -> None:
    assert win_or_tie_shares([0.5, 0.509]) == (1.0, 1.0)
    assert win_or_tie_shares([0.0, 0.01]) == (0.0, 1.0)
    assert win_or_tie_shares([0.0, 0.01], tie=0.02) == (1.0, 1.0)


@pytest.mark.parametrize("rewards", [[], [1.0], [1.0, float("nan")], [1.0, float("-inf")]])
def test_rewards_of_which_no_share_can_be_said_are_refused(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="rewards"):
        win_or_tie_shares(rewards)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9))
def test_of_each_pair_one_wins_or_both_tie(rewards: list[int]) -> None:
    shares = win_or_tie_shares([float(each) for each in rewards])
    pairs = len(rewards) * (len(rewards) - 1) / 2
    tied = sum(count * (count - 1) / 2 for count in Counter(rewards).values())
    assert sum(shares) * (len(rewards) - 1) == pytest.approx(pairs + tied)
    assert max(shares) == 1.0


@given(st.integers(0, 40), st.integers(0, 10), st.integers())
def test_cuts_are_different_ascending_and_end_with_the_whole(length: int, count: int, seed: int) -> None:
    found = cuts(length, count, random.Random(seed))  # noqa: S311 -- no secret
    assert found[-1] == length
    assert list(found) == sorted(set(found))
    assert len(found) == min(count, max(0, length - 1)) + 1
    assert all(1 <= each < length for each in found[:-1])
    assert found == cuts(length, count, random.Random(seed))  # noqa: S311 -- no secret


def test_cuts_are_as_likely_at_every_length() -> None:
    rng = random.Random(1)  # noqa: S311 -- no secret
    counted = Counter(each for _ in range(4000) for each in cuts(11, 1, rng)[:-1])
    assert set(counted) == set(range(1, 11))
    assert min(counted.values()) > 300


def test_a_group_is_the_same_after_being_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    groups = [group([0.0, 1.0, 1.0]), ODD]
    with JsonlWriter(path) as writer:
        for each in groups:
            writer.add(each.to_plain())
    assert path.read_text() == "".join(each.to_line() + "\n" for each in groups)
    file = GroupFile(path)
    assert list(file) == groups
    assert list(file) == groups
    assert file.skipped == 0


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_torn_lines_are_skipped_and_counted(tmp_path: Path, share: float) -> None:
    path = tmp_path / "examples.jsonl"
    line = ODD.to_line()
    torn = line[: int(share * len(line))].encode() + b"\xe2\x82"
    path.write_bytes(torn + b"\n" + line.encode() + b"\n\n" + torn)
    file = GroupFile(path)
    assert list(file) == [ODD]
    assert file.skipped == 2


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"split": "dev"},
        {"id": 3},
        {"answers": []},
        {"answers": [group([0.0, 1.0]).to_plain()["answers"][0]]},
        {"answers": [{**group([0.0, 1.0]).to_plain()["answers"][0], "logprobs": [0.0]}] * 2},
        {"answers": [{**group([0.0, 1.0]).to_plain()["answers"][0], "cuts": [1]}] * 2},
        {"answers": [{**group([0.0, 1.0]).to_plain()["answers"][0], "cuts": []}] * 2},
    ],
)
def test_what_is_no_group_of_this_format_is_not_read(change: dict[str, object]) -> None:
    plain = group([0.0, 1.0]).to_plain()
    assert Group.from_line(json.dumps(plain)) is not None
    assert Group.from_line(json.dumps(plain | change)) is None


def test_examples_are_all_cuts_of_all_answers_and_know_when_they_are_whole() -> None:
    two = group([0.0, 1.0])
    two = replace(two, answers=(answer(0.0, (-1.0, -2.0, -3.0), 0.0, cuts=(1, 3)), answer(1.0, (-4.0,), cuts=(1,))))
    found = list(examples([two]))
    assert [(each.place, each.cut, each.final, each.target) for each in found] == [
        (0, 1, False, 0.0),
        (0, 3, True, 0.0),
        (1, 1, True, 1.0),
    ]
    assert found[0].token_ids == (65,)
    assert found[1].logprobs == (-1.0, -2.0, -3.0)


def test_a_prompt_whose_answers_are_all_as_good_cannot_teach() -> None:
    assert not group([1.0, 1.0]).teaches
    assert group([1.0, 0.0]).teaches


# None in sys.modules is how an import fails that would succeed.
WITHOUT_PYARROW = """
import sys
from pathlib import Path
sys.modules["pyarrow"] = None
from adaptive.training import parquet
from adaptive.training.examples import GroupFile
path = Path(sys.argv[1])
for use in (parquet.Writer, lambda path: list(GroupFile(path))):
    try:
        use(path)
    except parquet.ParquetMissing as error:
        print(error)
"""


def test_parquet_without_its_library_names_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"
    command = [sys.executable, "-c", WITHOUT_PYARROW, str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert len(said) == 2
    assert all("pip install pyarrow" in line for line in said)
    assert not path.exists()


def test_a_group_is_the_same_after_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"
    groups = [group([0.0, 1.0, 1.0]), ODD]
    with parquet.Writer(path) as file:
        for each in groups:
            file.add(each.to_plain())
    assert list(GroupFile(path)) == groups
