"""The checkpoint is built once, whole or not at all. The real conversion: tests/e2e/test_engine_live.py."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from adaptive.artefacts import CONFIG, ROWS, packaged
from server.checkpoint import CheckpointError, Progress, build_checkpoint

# Stands in for gguf_conversion.py, which needs torch: same arguments, same protocol. It notes each run.
CONVERTER = """
import pathlib, sys, time
source, target, *rest = map(pathlib.Path, sys.argv[1:])
with (source.parent / "runs").open("a") as runs:
    runs.write("run\\n")
print("dequantizing the weights", flush=True)
time.sleep(float((source.parent / "takes_s").read_text()))
(target / "model.safetensors").write_bytes(source.read_bytes() * 2)
(target / "config.json").write_text("{}")
for artefact in map(pathlib.Path, rest):
    (target / "rows").write_bytes((artefact / "rows.safetensors").read_bytes())
"""


@dataclass(frozen=True)
class Workshop:
    """A source, a converter and a cache directory."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "model.gguf"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "cache" / "checkpoints"

    @property
    def artefact(self) -> Path:
        return self.folder / "artefact"

    def build(self, heard: list[Progress] | None = None, artefact: Path | None = None) -> Path:
        return build_checkpoint(
            self.folder / "cache",
            (heard if heard is not None else []).append,
            gguf=self.source,
            artefact=artefact,
            converter=self.folder / "converter.py",
        )

    def runs(self) -> int:
        return len((self.folder / "runs").read_text().splitlines())

    def takes(self, seconds: float) -> None:
        (self.folder / "takes_s").write_text(str(seconds))


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    (tmp_path / "converter.py").write_text(CONVERTER)
    workshop = Workshop(tmp_path)
    workshop.takes(0)
    return workshop


def test_the_checkpoint_is_what_the_converter_wrote(workshop: Workshop) -> None:
    checkpoint = workshop.build()
    assert (checkpoint / "model.safetensors").read_bytes() == b"weightsweights"
    assert checkpoint.name == "SmolLM2-135M-Instruct"


def test_a_second_build_converts_nothing_and_says_nothing(workshop: Workshop) -> None:
    first = workshop.build()
    heard: list[Progress] = []
    assert workshop.build(heard) == first
    assert workshop.runs() == 1
    assert heard == []


def test_a_truncated_file_is_noticed_and_built_again(workshop: Workshop) -> None:
    checkpoint = workshop.build()
    (checkpoint / "model.safetensors").write_bytes(b"half")
    assert (workshop.build() / "model.safetensors").read_bytes() == b"weightsweights"


@pytest.mark.parametrize("manifest", [None, "not JSON", "{}", "[]", '{"versions": {"conversion": "0"}}'])
def test_a_checkpoint_without_a_manifest_that_fits_is_built_again(workshop: Workshop, manifest: str | None) -> None:
    path = workshop.build() / "preamble-checkpoint.json"
    if manifest is None:
        path.unlink()
    else:
        path.write_text(manifest)
    workshop.build()
    assert workshop.runs() == 2


def test_another_source_is_converted_in_place_of_the_old_one(workshop: Workshop) -> None:
    workshop.build()
    workshop.source.write_bytes(b"other weights")
    assert (workshop.build() / "model.safetensors").read_bytes() == b"other weightsother weights"


def test_the_same_source_with_another_time_is_not_converted_again(workshop: Workshop) -> None:
    workshop.build()
    os.utime(workshop.source, (1, 1))
    workshop.build()
    assert workshop.runs() == 1


def test_an_artefact_extends_a_checkpoint_beside_the_plain_one_and_switching_builds_nothing(
    workshop: Workshop,
) -> None:
    workshop.artefact.mkdir()
    for name in ("rows.safetensors", "preamble_self_evaluation.json", "README.md"):
        (workshop.artefact / name).write_text(name)
    plain, extended = workshop.build(), workshop.build(artefact=workshop.artefact)
    assert (plain.name, extended.name) == ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct-self-evaluation")
    assert not (plain / "rows").exists()
    assert (extended / "rows").read_text() == "rows.safetensors"
    (workshop.artefact / "README.md").write_text("in other words")
    assert (workshop.build(), workshop.build(artefact=workshop.artefact)) == (plain, extended)
    assert workshop.runs() == 2


@pytest.mark.parametrize("name", ["rows.safetensors", "preamble_self_evaluation.json"])
def test_another_artefact_rebuilds_the_extended_checkpoint_alone(workshop: Workshop, name: str) -> None:
    workshop.artefact.mkdir()
    for each in ("rows.safetensors", "preamble_self_evaluation.json"):
        (workshop.artefact / each).write_text("old")
    plain, extended = workshop.build(), workshop.build(artefact=workshop.artefact)
    (workshop.artefact / name).write_text("new")
    assert workshop.build() == plain
    assert workshop.runs() == 2
    assert workshop.build(artefact=workshop.artefact) == extended
    assert workshop.runs() == 3


def test_an_artefact_counts_only_where_rows_and_configuration_are_there(tmp_path: Path) -> None:
    assert packaged("model", tmp_path) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ROWS).touch()
    assert packaged("model", tmp_path) is None
    (tmp_path / "model" / CONFIG).touch()
    assert packaged("model", tmp_path) == tmp_path / "model"


def test_of_two_builders_at_once_one_builds_and_the_other_waits(workshop: Workshop) -> None:
    workshop.takes(0.5)
    heard: tuple[list[Progress], list[Progress]] = ([], [])
    builders = [threading.Thread(target=workshop.build, args=(progress,)) for progress in heard]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert workshop.runs() == 1
    assert sum(any("another process" in progress.phase for progress in one) for one in heard) == 1


def test_progress_names_the_phases_with_rising_seconds(workshop: Workshop) -> None:
    workshop.takes(1.5)
    heard: list[Progress] = []
    workshop.build(heard)
    phases = [progress.phase for progress in heard]
    assert phases[0] == "building the checkpoint: importing torch"
    assert phases.count("building the checkpoint: dequantizing the weights") >= 2
    elapsed_s = [progress.elapsed_s for progress in heard]
    assert elapsed_s == sorted(elapsed_s)


def test_an_interrupt_leaves_neither_a_checkpoint_nor_a_lock_behind(workshop: Workshop) -> None:
    workshop.takes(60)

    def interrupt(progress: Progress) -> None:
        if "dequantizing" in progress.phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_checkpoint(
            workshop.folder / "cache", interrupt, gguf=workshop.source, converter=workshop.folder / "converter.py"
        )
    assert [path.name for path in workshop.checkpoints.iterdir()] == [".lock"]
    workshop.takes(0)
    workshop.build()


def test_what_a_killed_builder_left_is_removed_by_the_next_one(workshop: Workshop) -> None:
    abandoned = workshop.checkpoints / ".building-12345"
    abandoned.mkdir(parents=True)
    workshop.build()
    assert not abandoned.exists()


def test_a_failed_conversion_quotes_the_converter_and_leaves_nothing(workshop: Workshop) -> None:
    (workshop.folder / "converter.py").write_text("raise SystemExit('the file is not GGUF')")
    with pytest.raises(CheckpointError, match=r"status 1(.|\n)*make clean serve(.|\n)*the file is not GGUF"):
        workshop.build()
    assert [path.name for path in workshop.checkpoints.iterdir()] == [".lock"]


def test_a_failed_conversion_keeps_the_old_checkpoint(workshop: Workshop) -> None:
    checkpoint = workshop.build()
    workshop.source.write_bytes(b"other weights")
    (workshop.folder / "converter.py").write_text("raise SystemExit(1)")
    with pytest.raises(CheckpointError):
        workshop.build()
    assert (checkpoint / "model.safetensors").read_bytes() == b"weightsweights"


def test_a_cache_directory_that_cannot_be_made_is_an_error_with_a_remedy(workshop: Workshop) -> None:
    (workshop.folder / "cache").write_text("a file where the directory should be")
    with pytest.raises(CheckpointError, match="set cache_dir to another directory"):
        workshop.build()
