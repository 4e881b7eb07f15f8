"""The file of recordings: what survives a kill, and what is sampled again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adaptive.evaluation.recording import Recording
from server.eval_cache import RecordingFile
from tests.adaptive.evaluation.recordings import CHECKPOINTS, SETUP, Made, recording

ONE, TWO, THREE = (recording("a", index, Made(0.1 * index)) for index in range(3))


def written(path: Path, *recordings: Recording) -> None:
    with RecordingFile(path) as file:
        for each in recordings:
            file.add(each)


def test_what_was_added_is_there_when_the_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "candidates.jsonl"
    written(path, ONE)
    written(path, TWO)
    assert RecordingFile(path).recordings == {ONE.key: ONE, TWO.key: TWO}


def test_a_recording_is_on_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    with RecordingFile(tmp_path / "c.jsonl") as file:
        file.add(ONE)
        assert RecordingFile(file.path).recordings == {ONE.key: ONE}


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_torn_last_line_is_ignored_and_does_not_spoil_the_next(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.jsonl"
    written(path, ONE)
    with path.open("a") as file:
        file.write(TWO.to_line()[: int(share * len(TWO.to_line()))])  # as a kill leaves it
    again = RecordingFile(path)
    assert (again.recordings, again.ignored) == ({ONE.key: ONE}, 1)
    written(path, THREE)
    assert RecordingFile(path).recordings == {ONE.key: ONE, THREE.key: THREE}


def test_a_character_that_was_torn_apart_is_ignored_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    written(path, ONE)
    with path.open("ab") as file:
        file.write(b'{"text": "\xe2\x82')
    assert RecordingFile(path).recordings == {ONE.key: ONE}


def test_of_two_with_one_key_the_latest_counts(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    written(path, ONE, replace(ONE, took_s=9.0))
    assert RecordingFile(path).recordings[ONE.key].took_s == 9.0


def test_other_settings_or_checkpoints_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    written(path, ONE)
    file = RecordingFile(path)
    assert file.has(ONE.key, CHECKPOINTS)
    assert file.has(ONE.key, CHECKPOINTS[:1])
    assert not file.has(ONE.key, (*CHECKPOINTS, 12))
    assert file.has(ONE.key, CHECKPOINTS, ("read_out",))
    written(path, replace(ONE, scorers=("read_out",)))
    assert not RecordingFile(path).has(ONE.key, CHECKPOINTS, ("read_out", "self_evaluation"))
    assert not file.has(replace(SETUP, temperature=0.7).key(ONE.prompt, ONE.seed), CHECKPOINTS)


def test_nothing_can_be_added_to_a_file_that_is_not_open(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not open"):
        RecordingFile(tmp_path / "c.jsonl").add(ONE)
