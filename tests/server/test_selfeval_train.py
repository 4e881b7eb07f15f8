"""Training from a data file to a calibrated checkpoint, on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402 -- there may be no torch

from adaptive.artefacts import packaged  # noqa: E402
from adaptive.scoring import MIN_LABEL_MASS  # noqa: E402
from adaptive.self_evaluation import LITERAL_QUESTION  # noqa: E402
from adaptive.training.loop import Point, Recipe, TrainingError  # noqa: E402
from adaptive.training.ways import Way  # noqa: E402
from server.learning_curve_plot import draw  # noqa: E402
from server.self_evaluation_config import FILE, QuestionIds, read_config  # noqa: E402
from server.selfeval_calibrate import CalibrateError  # noqa: E402
from server.selfeval_train import Result, TrainOptions, available_device, run_train  # noqa: E402
from tests.adaptive.training.tiny import VOCABULARY  # noqa: E402
from tests.server import training_data  # noqa: E402

PNG = b"\x89PNG\r\n"
BOTH = (Way.TOKENS, Way.READ_OUT)
RECIPES = (
    (Way.TOKENS, Recipe(epochs=1.0, learning_rate=1e-2)),
    (Way.READ_OUT, Recipe(epochs=2.0, learning_rate=5e-3)),
    (Way.FINE_TUNED, Recipe(epochs=1.0, learning_rate=1e-2)),
)


class Told:
    """What a waiting person is told. until: of a message at which they stop waiting."""

    def __init__(self, until: str | None = None) -> None:
        self.said: list[str] = []
        self._until = until

    def __call__(self, what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.said.append(what)
        if self._until is not None and what.startswith(self._until):
            raise KeyboardInterrupt

    def validations(self, way: Way) -> int:
        return sum(each.startswith(f"training {way.value}: loss") for each in self.said)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_data.checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_data.data(tmp_path_factory.mktemp("data"))


def options(data: Path, tiny: Path, out: Path, *ways: Way, **more: Any) -> TrainOptions:
    given: dict[str, Any] = {"rows": 2, "recipes": RECIPES, "every": 6, "threads": 1}
    return TrainOptions(data=data, checkpoint=tiny, out=out, ways=ways, **(given | more))


@pytest.fixture(scope="module")
def trained(data: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Told]:
    out, told = tmp_path_factory.mktemp("trained"), Told()
    return out, run_train(options(data, tiny, out, *BOTH), told), told


def test_soft_tokens_and_a_read_out_make_one_complete_checkpoint(trained: tuple[Path, Result, Told]) -> None:
    out, result, told = trained
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", FILE, "artefact", "training.json"} <= names
    # An engine loads whatever is called so beside config.json.
    assert {name for name in names if name.endswith(".safetensors")} == {"model.safetensors"}
    assert packaged(out.name, out.parent) is None
    assert packaged("artefact", out) == out / "artefact"
    kept = {path.name for path in (out / "training").iterdir()}
    for way in BOTH:
        assert {f"curve-{way.value}.jsonl", f"state-{way.value}.pt"} <= kept
        lines = (out / "training" / f"curve-{way.value}.jsonl").read_text().splitlines()
        assert [Point(**json.loads(line)) for line in lines] == list(result.curves[way.value])
        assert told.validations(way) == len(lines) > 1
    for source in ("question", "read_out"):
        assert {f"scored-{source}-calibration.jsonl", f"scored-{source}-unseen.jsonl"} <= kept
        assert {path.name for path in (out / "training" / f"calibration-{source}").iterdir()} == {
            "report.json",
            "reliability.png",
        }
    assert (out / "training" / "curve.png").read_bytes().startswith(PNG)
    assert not [path for path in out.rglob("*") if path.suffix in {".writing", ".new"}]


def test_the_configuration_beside_it_is_understood(trained: tuple[Path, Result, Told]) -> None:
    out, result, _ = trained
    config = read_config(out)
    soft = len(load_file(out / "artefact" / "rows.safetensors")["soft"])
    assert isinstance(config.question, QuestionIds)
    assert config.question.suffix == tuple(range(VOCABULARY, VOCABULARY + soft))
    first = VOCABULARY + soft
    assert config.question.labels.ids == tuple(range(first, first + 4))
    assert config.read_out is not None
    assert config.read_out.ids == tuple(range(first + 4, first + 8))
    assert config.calibration == result.calibrated["question"].fit.calibration
    assert config.read_out_calibration == result.calibrated["read_out"].fit.calibration
    least = result.report["clearance"]["least_asked_mass"]
    assert config.min_label_mass == pytest.approx(0.01 * math.exp(least))
    assert result.report["clearance"]["most_mass"] < math.log(1e-9)


def test_the_rows_alone_are_those_of_the_checkpoint(trained: tuple[Path, Result, Told], tiny: Path) -> None:
    out, _, _ = trained
    rows, weights = load_file(out / "artefact" / "rows.safetensors"), load_file(out / "model.safetensors")
    embeddings, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    old = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    soft = len(rows["soft"])
    assert torch.equal(embeddings[VOCABULARY : VOCABULARY + soft], rows["soft"])
    soft_out = rows["soft_out"].repeat(soft, 1)
    assert torch.equal(head, torch.cat([old, soft_out, rows["question"], rows["read_out"]]))


def test_the_report_says_what_was_done(trained: tuple[Path, Result, Told]) -> None:
    out, result, _ = trained
    report = json.loads((out / "training.json").read_text())
    assert report == json.loads(json.dumps(result.report))
    assert report["ways"] == ["tokens", "read_out"]
    counts = report["prompts"]
    assert counts["train"] + counts["validation"] == 40
    assert (counts["calibration"], counts["unseen"]) == (24, 24)
    assert report["recipes"]["tokens"]["epochs"] == 1.0
    assert report["calibration"]["question"]["measured_on"]["prompts"] == 24
    assert str(out) not in json.dumps({name: report[name] for name in report if name != "calibration"})


def test_training_has_taught_the_read_out_to_rank(trained: tuple[Path, Result, Told]) -> None:
    _, result, _ = trained
    whole = result.calibrated["read_out"].after[-1]
    assert whole.passed.pairs.value > 0.75


def test_a_second_run_does_not_train_again_and_writes_the_same(
    trained: tuple[Path, Result, Told], data: Path, tiny: Path
) -> None:
    out, first, _ = trained
    before = {name: (out / name).read_bytes() for name in ("model.safetensors", FILE, "training.json")}
    (out / FILE).unlink()
    told = Told()
    again = run_train(options(data, tiny, out, *BOTH), told)
    assert [told.validations(way) for way in BOTH] == [0, 0]
    assert again.curves == first.curves
    assert {name: (out / name).read_bytes() for name in before} == before


def test_an_interrupted_run_goes_on_and_ends_the_same(
    trained: tuple[Path, Result, Told], data: Path, tiny: Path, tmp_path: Path
) -> None:
    out, whole, _ = trained
    with pytest.raises(KeyboardInterrupt):
        run_train(options(data, tiny, tmp_path, *BOTH), Told(until="training read_out: loss"))
    assert not (tmp_path / FILE).exists()
    told = Told()
    found = run_train(options(data, tiny, tmp_path, *BOTH), told)
    assert told.validations(Way.TOKENS) == 0
    assert 0 < told.validations(Way.READ_OUT) < len(whole.curves["read_out"])
    assert found.curves == whole.curves
    for name in ("artefact/rows.safetensors", f"artefact/{FILE}", FILE):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize("other", ["data", "rows", "soft_text", "seed"])
def test_what_was_trained_of_something_else_is_not_taken_up(
    trained: tuple[Path, Result, Told], data: Path, tiny: Path, tmp_path: Path, other: str
) -> None:
    out, _, _ = trained
    asked = options(data, tiny, out, *BOTH)
    changed = {
        "data": replace(asked, data=training_data.data(tmp_path, first="other")) if other == "data" else asked,
        "rows": replace(asked, rows=3),
        "soft_text": replace(asked, soft_text="Right?"),
        "seed": replace(asked, seed=1),
    }
    with pytest.raises(TrainingError, match=f"of a training with other {other}; remove it, or give another --out"):
        run_train(changed[other], Told())


def test_another_way_may_join_what_is_trained_already(data: Path, tiny: Path, tmp_path: Path) -> None:
    run_train(options(data, tiny, tmp_path, Way.READ_OUT), Told())
    config = read_config(tmp_path)
    assert config.question is LITERAL_QUESTION
    assert config.calibration is None
    assert config.read_out_calibration is not None
    told = Told()
    run_train(options(data, tiny, tmp_path, *BOTH), told)
    assert told.validations(Way.READ_OUT) == 0
    assert isinstance(read_config(tmp_path).question, QuestionIds)


def test_the_literal_way_makes_a_configuration_alone(data: Path, tiny: Path, tmp_path: Path) -> None:
    result = run_train(options(data, tiny, tmp_path, Way.LITERAL), Told())
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "training", "training.json"}
    config = read_config(tmp_path)
    assert config.question == LITERAL_QUESTION
    assert config.calibration == result.calibrated["question"].fit.calibration
    assert config.read_out is None
    assert result.curves == {}
    assert not (tmp_path / "training" / "curve.png").exists()


def test_fine_tuning_makes_an_ordinary_checkpoint_with_the_literal_question(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    result = run_train(options(data, tiny, tmp_path, Way.FINE_TUNED), Told())
    config = read_config(tmp_path)
    assert config.question == LITERAL_QUESTION
    assert config.calibration == result.calibrated["question"].fit.calibration
    assert 0 < config.min_label_mass < MIN_LABEL_MASS  # a hundredth of what the labels have at the least
    old, new = load_file(tiny / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert old.keys() == new.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert new[name].dtype == old[name].dtype == torch.bfloat16
    assert not torch.equal(old[name], new[name])
    assert torch.equal(old["model.embed_tokens.weight"], new["model.embed_tokens.weight"])
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    before = (tmp_path / "model.safetensors").read_bytes()
    told = Told()
    again = run_train(options(data, tiny, tmp_path, Way.FINE_TUNED), told)
    assert told.validations(Way.FINE_TUNED) == 0
    assert again.curves == result.curves
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("ways", "problem"),
    [
        ((), "Name a way: tokens, read_out"),
        ((Way.TOKENS, Way.LITERAL), "Only tokens and read_out share a checkpoint"),
        ((Way.FINE_TUNED, Way.READ_OUT), "Only tokens and read_out share a checkpoint"),
    ],
)
def test_ways_that_do_not_go_together_are_refused(
    data: Path, tiny: Path, tmp_path: Path, ways: tuple[Way, ...], problem: str
) -> None:
    with pytest.raises(TrainingError, match=problem):
        run_train(options(data, tiny, tmp_path / "out", *ways), Told())
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_trained_on_is_told(data: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"examples\.jsonl is not there. Make it: `preamble selfeval data`"):
        run_train(options(tmp_path, tiny, tmp_path / "out", Way.TOKENS), Told())
    with pytest.raises(TrainingError, match=r"is no checkpoint: it has no config\.json"):
        run_train(options(data, tmp_path, tmp_path / "out", Way.TOKENS), Told())
    with pytest.raises(TrainingError, match="is the model itself"):
        run_train(options(data, tiny, tiny, Way.TOKENS), Told())
    lines = (data / "examples.jsonl").read_text().splitlines(keepends=True)
    some = tmp_path / "some.jsonl"
    some.write_text("".join(line for line in lines if '"calibration"' not in line))
    with pytest.raises(TrainingError, match=r"some\.jsonl has no prompts of the split calibration"):
        run_train(options(some, tiny, tmp_path / "out", Way.TOKENS), Told())
    some.write_text("".join(line for line in lines if '"id":"calibration' not in line or '/1"' in line))
    with pytest.raises(CalibrateError, match="no map could be fitted"):
        run_train(options(some, tiny, tmp_path / "out", Way.LITERAL), Told())


def test_without_a_device_there_is_no_training_on_it() -> None:
    assert available_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert available_device("auto") == available_device("cuda") == "cuda"
        return
    assert available_device("auto") == "cpu"
    with pytest.raises(TrainingError, match="no CUDA device"):
        available_device("cuda")


def test_a_picture_is_drawn_of_whatever_the_curves_have() -> None:
    curve = [Point(5, 10, 0.7, 0.68, 0.6, None), Point(10, 20, 0.65), Point(15, 30, 0.6, 0.66, 0.7, 0.6)]
    assert draw({"tokens": curve}).startswith(PNG)
    assert draw({"tokens": curve}) != draw({"tokens": curve[:2]})
    assert draw({"tokens": curve, "read_out": curve}) != draw({"tokens": curve})
