"""`preamble selfeval train`: from sampled answers to a checkpoint that judges itself, calibrated, with its model card.

Out, in one directory: an ordinary checkpoint with `preamble_self_evaluation.json` beside it (the literal way needs only
that file), in `artefact/` the new rows alone with a copy of that file (some forty kilobytes, from which the checkpoint
can be rebuilt), and in `training/` the learning curves and their picture, what resumes an interrupted run, the scored
examples and the calibration reports.
Loads torch and transformers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from adaptive.self_evaluation import LITERAL_QUESTION
from adaptive.splits import Split
from adaptive.training import build as builder
from adaptive.training.checkpoint import extend, save_rows, written
from adaptive.training.examples import Group, GroupFile
from adaptive.training.frozen import load_model
from adaptive.training.loop import Examined, Point, Recipe, TrainingError, train, write_curve
from adaptive.training.packing import Place
from adaptive.training.scores import Score, scored
from adaptive.training.ways import LiteralQuestion, ReadOut, SoftTokens, Trainable, Way
from server.learning_curve_plot import draw
from server.self_evaluation_config import FILE
from server.selfeval_calibrate import Calibrated, Source, calibrate

SOFT_TEXT: Final = "\n<|im_start|>user\nDid the answer follow every instruction?<|im_end|>\n<|im_start|>assistant\n"
"""Where the soft tokens start from, in words: the embeddings of these tokens."""
RECIPES: Final = {
    Way.TOKENS: Recipe(epochs=1.0, learning_rate=2e-3),
    Way.READ_OUT: Recipe(epochs=12.0, learning_rate=2e-3, weight_decay=0.1, groups=4),
    Way.FINE_TUNED: Recipe(epochs=1.0, learning_rate=3e-4, groups=4),
}
_VALIDATION: Final = 0.08
_MOST_VALIDATION: Final = 40  # more would take longer than what is trained between two validations
_STATE_GROUPS: Final = 96
_LORA_RANK: Final = 16
_ARTEFACT: Final = "artefact"  # apart: vLLM takes every .safetensors beside config.json for weights of the model
_LEAST_MASS_SHARE: Final = 0.01
_EMPTY_SET: Final = "{} has no prompts of the split {}. Sample more: `preamble selfeval data`."


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What was asked for.

    data: what `selfeval data` wrote. checkpoint: the model that gave the answers. ways: what is trained; soft tokens
    and a read-out may share a checkpoint. rows: label rows per label. recipes: by way, where they differ from
    `RECIPES`.
    """

    data: Path
    checkpoint: Path
    out: Path
    ways: tuple[Way, ...]
    rows: int = 4
    soft_text: str = SOFT_TEXT
    recipes: tuple[tuple[Way, Recipe], ...] = ()
    device: str = "cpu"
    threads: int | None = None
    every: int = 100
    seed: int = 0

    def recipe(self, way: Way) -> Recipe:
        """Return how a way is trained."""
        return dict(self.recipes).get(way, replace(RECIPES[way], seed=self.seed))


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. curves: by way. calibrated: by source. report: all of it as JSON values."""

    curves: dict[str, tuple[Point, ...]]
    calibrated: dict[str, Calibrated]
    report: dict[str, Any]


Tell = Callable[[str, int, int], None]
"""Given what is being done, how far it is, and how far it goes."""


def run_train(options: TrainOptions, tell: Tell) -> Result:
    """Train, build the checkpoint, calibrate and report.

    Raises `TrainingError`, `CheckpointError`, `CalibrateError`.
    """
    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    groups = _Groups.read(options.data)
    folder = options.out / "training"
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder / "of.json", _identity(options, groups))
    session = _Session(options, groups, folder, tell)
    if Way.LITERAL in options.ways:
        return session.literal()
    if Way.FINE_TUNED in options.ways:
        return session.fine_tuned()
    return session.rows()


def available_device(asked: str) -> str:
    """Return where to train: `auto` is a GPU if there is one. Raises `TrainingError` for `cuda` without one."""
    found: bool = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise TrainingError("torch finds no CUDA device here; leave out --device, or give --device cpu.")
    return ("cuda" if found else "cpu") if asked == "auto" else asked


def _check(options: TrainOptions) -> None:
    ways = options.ways
    if not ways:
        raise TrainingError("Name a way: " + ", ".join(Way))
    if len(ways) > 1 and not set(ways) <= {Way.TOKENS, Way.READ_OUT}:
        raise TrainingError("Only tokens and read_out share a checkpoint; train the other ways one by one.")
    if not (options.checkpoint / "config.json").is_file():
        raise TrainingError(f"{options.checkpoint} is no checkpoint: it has no config.json.")
    if options.out.resolve() == options.checkpoint.resolve():
        raise TrainingError(f"{options.out} is the model itself, which stays as it is; give another --out.")


def _identity(options: TrainOptions, groups: _Groups) -> dict[str, Any]:
    """Return what a saved state depends on besides its recipe."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(options.checkpoint.iterdir()):
        if file.suffix == ".safetensors":
            digest.update(f"{file.name} {file.stat().st_size}".encode())
    digest.update((options.checkpoint / "config.json").read_bytes())
    return {
        "data": groups.digest,
        "checkpoint": digest.hexdigest(),
        "rows": options.rows,
        "soft_text": options.soft_text,
        "seed": options.seed,
    }


def _check_same(file: Path, identity: dict[str, Any]) -> None:
    """Remember what the directory's training is of. Raises `TrainingError` if it is of something else."""
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name, value in identity.items() if before.get(name) != value]
        if other:
            raise TrainingError(
                f"{file.parent} is of a training with other {', '.join(other)}; remove it, or give another --out."
            )
    file.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Groups:
    """The prompts by what they are for. unseen: for measuring what was fitted on `calibration`."""

    train: tuple[Group, ...]
    validation: tuple[Group, ...]
    calibration: tuple[Group, ...]
    unseen: tuple[Group, ...]
    digest: str

    @classmethod
    def read(cls, data: Path) -> _Groups:
        file = data / "examples.jsonl" if data.is_dir() else data
        if not file.exists():
            raise TrainingError(f"{file} is not there. Make it: `preamble selfeval data`.")
        split: dict[Split, list[Group]] = {each: [] for each in Split}
        digest = hashlib.blake2b(digest_size=16)
        for group in GroupFile(file):
            split[group.split].append(group)
            digest.update(group.to_line().encode())
        for needed in (Split.TRAIN, Split.CALIBRATION):
            if not split[needed]:
                raise TrainingError(_EMPTY_SET.format(file, needed.value))
        by_place = sorted(split[Split.TRAIN], key=_place)
        kept_out = min(_MOST_VALIDATION, math.ceil(_VALIDATION * len(by_place)))
        # Without test prompts, half of those for calibration say how good the map is that the other half made.
        unseen = split[Split.TEST] or [group for group in split[Split.CALIBRATION] if _place(group) < 0.5]  # noqa: PLR2004
        ids = {group.id for group in unseen}
        return cls(
            tuple(by_place[kept_out:]),
            tuple(by_place[:kept_out]),
            tuple(group for group in split[Split.CALIBRATION] if group.id not in ids),
            tuple(unseen),
            digest.hexdigest(),
        )


def _place(group: Group) -> float:
    """Return a number from 0 to 1 that is a prompt's own."""
    return int.from_bytes(hashlib.blake2b(group.id.encode(), digest_size=8).digest()) / 2**64


class _Session:
    """One run, over one model."""

    def __init__(self, options: TrainOptions, groups: _Groups, folder: Path, tell: Tell) -> None:
        self._options, self._groups, self._folder, self._tell = options, groups, folder, tell
        self._model = load_model(options.checkpoint, device=options.device)

    def rows(self) -> Result:
        """Train soft tokens, a read-out or both, and build one checkpoint with them."""
        options, trained, curves = self._options, {}, {}
        for way in options.ways:
            trainable = self._soft_tokens() if way is Way.TOKENS else self._read_out()
            curves[way.value] = self._train(way, trainable).curve
            trained[way] = trainable
        tokens, read_out = trained.get(Way.TOKENS), trained.get(Way.READ_OUT)
        assert tokens is None or isinstance(tokens, SoftTokens)  # noqa: S101 -- for the type checker
        assert read_out is None or isinstance(read_out, ReadOut)  # noqa: S101 -- the same
        seen, unseen = self._groups.train[:_STATE_GROUPS], self._groups.validation[:_STATE_GROUPS]
        rows = builder.build(builder.sample_states(self._model, seen, tokens), tokens, read_out)
        kept = builder.clearance(self._model, builder.sample_states(self._model, unseen, tokens), rows)
        vocabulary = self._model.config.vocab_size
        extend(options.checkpoint, options.out, rows)
        artefact = options.out / _ARTEFACT
        artefact.mkdir(exist_ok=True)
        save_rows(artefact, rows)
        config = dict(written(vocabulary, rows))
        if kept.least_asked_mass is not None:
            # Far below what the labels have where they were trained to be read, far above what they have elsewhere.
            config["min_label_mass"] = _LEAST_MASS_SHARE * math.exp(kept.least_asked_mass)
        (options.out / FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        calibrated = {}
        if tokens is not None:
            calibrated["question"] = self._calibrate(Source.QUESTION, builder.question_score(self._model, rows))
        if read_out is not None:
            calibrated["read_out"] = self._calibrate(Source.READ_OUT, builder.read_out_score(self._model, rows))
        (artefact / FILE).write_bytes((options.out / FILE).read_bytes())
        return self._result(curves, calibrated, clearance=asdict(kept))

    def fine_tuned(self) -> Result:
        """Train LoRA for the literal question, and merge it."""
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 -- only here

        options = self._options
        lora = LoraConfig(r=_LORA_RANK, lora_alpha=2 * _LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(self._model, lora)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trainable = self._literal_question(adapted, trained=True)
        curve = self._train(Way.FINE_TUNED, trainable).curve
        merged = adapted.merge_and_unload()
        merged.save_pretrained(options.out)
        for file in options.checkpoint.iterdir():
            if file.is_file() and not (options.out / file.name).exists():
                (options.out / file.name).write_bytes(file.read_bytes())
        self._model = merged
        question = self._literal_question(merged, trained=False)
        config = _literal_config() | {"min_label_mass": _LEAST_MASS_SHARE * self._least_mass(question)}
        (options.out / FILE).write_text(json.dumps(config) + "\n", encoding="utf-8")
        calibrated = {"question": self._calibrate(Source.QUESTION, question.log_odds)}
        return self._result({Way.FINE_TUNED.value: curve}, calibrated)

    def literal(self) -> Result:
        """Fit a calibration map for the untouched model."""
        (self._options.out / FILE).write_text(json.dumps(_literal_config()) + "\n", encoding="utf-8")
        question = self._literal_question(self._model, trained=False)
        return self._result({}, {"question": self._calibrate(Source.QUESTION, question.log_odds)})

    def _soft_tokens(self) -> SoftTokens:
        text = self._tokenizer()(self._options.soft_text, add_special_tokens=False).input_ids
        tokens = SoftTokens(self._model, tuple(text), rows=self._options.rows)
        tokens.to(self._options.device)
        self._fit_normaliser(tokens, 24)
        return tokens

    def _read_out(self) -> ReadOut:
        read_out = ReadOut(self._model, rows=self._options.rows)
        read_out.to(self._options.device)
        self._fit_normaliser(read_out, 48)
        return read_out

    def _fit_normaliser(self, way: SoftTokens | ReadOut, groups: int) -> None:
        """Take mean and spread from whole answers to about that many prompts."""
        with torch.no_grad():
            some = self._groups.train[:: max(1, len(self._groups.train) // groups)]
            way.rows.fit_normaliser(torch.cat([way.states(each, _wholes(each)) for each in some]))

    def _literal_question(self, model: Any, *, trained: bool) -> LiteralQuestion:
        tokenizer = self._tokenizer()
        chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
        inside = tokenizer.apply_chat_template(chat, continue_final_message=True, tokenize=False)
        asked = tokenizer.apply_chat_template(
            [*chat, {"role": "user", "content": LITERAL_QUESTION.text}], add_generation_prompt=True, tokenize=False
        )
        question = tokenizer(asked[len(inside) :], add_special_tokens=False).input_ids
        labels = [
            tuple(tokenizer(each, add_special_tokens=False).input_ids[0] for each in spellings)
            for spellings in (LITERAL_QUESTION.win_or_tie, LITERAL_QUESTION.loss)
        ]
        return LiteralQuestion(model, tuple(question), labels[0], labels[1], question[0], trained=trained)

    def _least_mass(self, question: LiteralQuestion) -> float:
        """Return the smallest probability that all labels together have after a whole answer to an unseen prompt."""
        with torch.no_grad():
            unseen = self._groups.validation[:_STATE_GROUPS]
            return min(float(question.logits(each, _wholes(each)).exp().sum(1).min()) for each in unseen)

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # noqa: PLC0415 -- takes seconds

        return AutoTokenizer.from_pretrained(self._options.checkpoint)

    def _train(self, way: Way, trainable: Trainable) -> Examined:
        def tell(point: Point, steps: int) -> None:
            write_curve(self._folder / f"curve-{way.value}.jsonl", (*told, point))
            told.append(point)
            self._tell(f"training {way.value}: {_said(point)}", point.step, steps)

        told: list[Point] = []
        self._tell(f"training {way.value}", 0, 1)
        found = train(
            trainable,
            self._groups.train,
            self._groups.validation,
            self._options.recipe(way),
            state=self._folder / f"state-{way.value}.pt",
            every=self._options.every,
            tell=tell,
        )
        write_curve(self._folder / f"curve-{way.value}.jsonl", found.curve)
        return found

    def _calibrate(self, source: Source, score: Score) -> Calibrated:
        files = []
        for name, groups in (("calibration", self._groups.calibration), ("unseen", self._groups.unseen)):
            file = self._folder / f"scored-{source.value}-{name}.jsonl"
            with file.open("w", encoding="utf-8") as opened:
                for place, group in enumerate(groups):
                    self._tell(f"scoring for {source.value}, {name}", place, len(groups))
                    opened.writelines(each.to_line() + "\n" for each in scored([group], score))
            files.append(file)
        found = calibrate(files[0], files[1], self._options.out, source=source, seed=self._options.seed)
        found.write(self._folder / f"calibration-{source.value}")
        return found

    def _result(self, curves: dict[str, tuple[Point, ...]], calibrated: dict[str, Calibrated], **more: Any) -> Result:
        options, groups = self._options, self._groups
        if curves:
            (self._folder / "curve.png").write_bytes(draw(curves))
        report = {
            "format": 1,
            "ways": [way.value for way in options.ways],
            "checkpoint": options.checkpoint.name,
            "data": groups.digest,
            "prompts": {name: len(getattr(groups, name)) for name in ("train", "validation", "calibration", "unseen")},
            "recipes": {way.value: asdict(options.recipe(way)) for way in options.ways if way in RECIPES},
            "rows": options.rows,
            "soft_text": options.soft_text if Way.TOKENS in options.ways else None,
            "curves": {way: [asdict(point) for point in curve] for way, curve in curves.items()},
            "calibration": {source: each.report for source, each in calibrated.items()},
            **more,
        }
        (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return Result(curves, calibrated, report)


def _wholes(group: Group) -> list[Place]:
    return [Place(index, len(answer.token_ids)) for index, answer in enumerate(group.answers)]


def _literal_config() -> dict[str, Any]:
    return {
        "format": 1,
        "question": LITERAL_QUESTION.text,
        "win_or_tie": list(LITERAL_QUESTION.win_or_tie),
        "loss": list(LITERAL_QUESTION.loss),
    }


def _said(point: Point) -> str:
    pairs = "" if point.pairs_whole is None else f", pairs {point.pairs_whole:.3f}"
    validation = "" if point.validation is None else f", validation {point.validation:.4f}"
    return f"loss {point.loss:.4f}{validation}{pairs}"
