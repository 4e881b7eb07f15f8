"""`preamble selfeval train` and `calibrate`, as somebody types them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptive.training.fit import Method
from adaptive.training.scored import Scored
from server.cli import run
from server.cli_train import WayName
from server.self_evaluation_config import FILE, read_config
from tests.adaptive.training.scores import scored
from tests.server import training_data

Command = Callable[..., tuple[int, str, str]]
HAS_TORCH = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "safetensors"))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="the engine's extra is not installed")
FAST = ("--epochs", "0.5", "--rows", "1", "--threads", "1", "--every", "5", "--device", "cpu")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    for name in os.environ:
        if name.startswith("PREAMBLE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def selfeval(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["selfeval", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return selfeval


def write(path: Path, examples: list[Scored]) -> str:
    path.write_text("".join(each.to_line() + "\n" for each in examples))
    return path.name


@pytest.fixture
def files(tmp_path: Path, command: Command) -> tuple[str, ...]:
    """Return options with files of scored examples in the working directory."""
    seen, unseen = scored(25, cuts=(40,)), scored(20, seed=9, first="q", cuts=(40,))
    fit, measure = write(tmp_path / "seen.jsonl", seen), write(tmp_path / "unseen.jsonl", unseen)
    return ("--fit", fit, "--measure", measure, "--resamples", "20")


def test_a_calibration_is_written_and_told(tmp_path: Path, command: Command, files: tuple[str, ...]) -> None:
    status, out, err = command("calibrate", *files, "--config", ".", "--out", "report")
    assert (status, err) == (0, "")
    calibration = read_config(tmp_path).calibration
    assert calibration is not None
    assert f"map of log_odds, mean_log_probability, least_log_probability, log_tokens, in {FILE}" in out
    assert "at the end: ECE" in out
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "reliability.png"}
    status, out, err = command("calibrate", *files, "--config", FILE, "--method", "temperature", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["fit"]["method"] == Method.TEMPERATURE.value
    assert read_config(tmp_path).calibration != calibration


def test_a_read_outs_map_goes_beside_its_labels(tmp_path: Path, command: Command, files: tuple[str, ...]) -> None:
    status, out, err = command("calibrate", *files, "--config", ".", "--source", "read_out")
    assert (status, out) == (1, "")
    assert "a read-out's map goes beside its labels" in err
    (tmp_path / FILE).write_text('{"format": 1, "read_out": {"win_or_tie_ids": [3], "loss_ids": [4]}}')
    assert command("calibrate", *files, "--config", ".", "--source", "read_out")[0] == 0
    config = read_config(tmp_path)
    assert (config.calibration, config.read_out_calibration is None) == (None, False)


def test_what_cannot_be_calibrated_is_one_message(tmp_path: Path, command: Command, files: tuple[str, ...]) -> None:
    status, out, err = command("calibrate", "--fit", "seen.jsonl", "--measure", "seen.jsonl", "--config", ".")
    assert (status, out) == (1, "")
    assert "have 25 prompts in common" in err
    assert not (tmp_path / FILE).exists()
    assert command("calibrate", *files, "--config", ".", "--method", "magic")[0] == 2


@needs_torch
def test_a_checkpoint_is_trained_told_and_taken_up(tmp_path: Path, command: Command) -> None:
    training_data.checkpoint(tmp_path / "tiny")
    training_data.data(tmp_path / "data")
    asked = ("train", "--data", "data", "--out", "made", "--checkpoint", "tiny", *FAST)
    status, out, err = command(*asked)
    assert status == 0, err
    assert "read-out\n" in out
    assert "at the end: ECE" in out
    assert "made: training.json tells the rest" in out
    lines = err.splitlines()
    assert any(line.startswith("training tokens: loss") and "validation" in line for line in lines)
    assert sum(line.startswith("scoring for question, calibration") for line in lines) == 1
    config = read_config(tmp_path / "made")
    assert config.calibration is not None
    assert config.read_out_calibration is not None
    report = json.loads((tmp_path / "made" / "training.json").read_text())
    assert {recipe["epochs"] for recipe in report["recipes"].values()} == {0.5}
    status, out, err = command(*asked, "--json")
    assert status == 0, err
    assert json.loads(out) == report
    assert "training tokens: loss" not in err
    status, out, err = command(*asked, "--learning-rate", "0.5")
    assert (status, out) == (1, "")
    assert "is of another recipe or other data; remove it" in err
    status, out, err = command(*asked, "--soft-text", "Right?")
    assert status == 1
    assert "of a training with other soft_text" in err


@needs_torch
def test_every_way_can_be_named() -> None:
    from adaptive.training.ways import Way  # noqa: PLC0415 -- there may be no torch

    assert [each.value for each in WayName] == [each.value for each in Way]


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--checkpoint", "nowhere"), "nowhere is no checkpoint: it has no config.json."),
        (("--checkpoint", "nowhere", "--way", "literal", "--way", "tokens"), "Only tokens and read_out share"),
    ],
)
def test_what_cannot_be_trained_is_one_message(command: Command, arguments: tuple[str, ...], problem: str) -> None:
    status, out, err = command("train", "--data", "data", "--out", "made", *arguments)
    assert (status, out) == (1, "")
    assert problem in err
    assert "Traceback" not in err


@needs_torch
def test_a_checkpoint_that_cannot_be_extended_is_one_message(tmp_path: Path, command: Command) -> None:
    tiny = training_data.checkpoint(tmp_path / "tiny")
    training_data.data(tmp_path / "data")
    (tiny / "model.safetensors").rename(tiny / "model-00001-of-00001.safetensors")
    from safetensors import safe_open  # noqa: PLC0415 -- there may be none

    with safe_open(tiny / "model-00001-of-00001.safetensors", framework="pt") as opened:
        places = dict.fromkeys(opened.keys(), "model-00001-of-00001.safetensors")
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    status, _, err = command(
        "train", "--data", "data", "--out", "made", "--checkpoint", "tiny", "--way", "read_out", *FAST
    )
    assert status == 1
    assert "tiny has no model.safetensors; only checkpoints in one file can be extended." in err


@pytest.mark.skipif(HAS_TORCH, reason="the engine's extra is installed")
def test_without_torch_it_is_told_what_to_install(command: Command) -> None:
    status, _, err = command("train", "--data", "data", "--out", "made")
    assert status == 1
    assert "Training needs torch" in err


def test_help_waits_for_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'sklearn', 'scipy', 'numpy', 'matplotlib', 'peft', 'safetensors'}"
    code = (
        "import sys\nfrom server.cli import run\n"
        "assert run(['selfeval', 'train', '--help']) == run(['--help']) == 0\n"
        f"found = {heavy} & sys.modules.keys()\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
