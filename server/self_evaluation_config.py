"""The checkpoint's self-evaluation configuration: how a model that was trained to judge itself wants to be asked.

A JSON file `preamble_self_evaluation.json` beside the checkpoint's weights, written by whoever trained it. `format` is
1. The question is either text or token ids, or left out where there is only a read-out:

    {"format": 1, "question": "Would you do better ...?", "win_or_tie": "No", "loss": ["Yes", "yes"]}
    {"format": 1, "suffix_ids": [2, 1, 4093, ...], "win_or_tie_ids": [2249], "loss_ids": [10539],
     "read_out": {"win_or_tie_ids": [49150], "loss_ids": [49151]}}

question: asked in a user turn after the response. win_or_tie, loss: the labels, each spelling one token of the model.
suffix_ids: all that follows the response, from the token that ends the assistant's turn up to where the label is read.
read_out: labels that can be read at every generated token, for the scorer `read_out`.

Beside the question, and good for the literal one too where that is left out:

    "new_ids_from": 49152, "min_label_mass": 0.001, "calibration": {"features": ["log_odds"], "buckets": [
        {"up_to": 48, "weights": [0.4], "bias": -0.1, "knots": [[-3, 0.1], [3, 0.8]]},
        {"final": true, "weights": [0.9], "bias": 0, "knots": [[-3, 0.05], [3, 0.95]]}]}

new_ids_from: the first token id that the checkpoint has for its self-evaluation alone; none from there on is in a text.
Where suffix_ids begins there, it follows the response as it stands, with its end token if it has one. No client may ask
for such ids (`server/new_tokens.py`). min_label_mass: 0 to 1; below it the model is taken not to answer the question.
calibration: the map from raw scores to probabilities, see `adaptive.calibration`; `read_out` may have its own of the
same form, `read_out.calibration`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import structlog

from adaptive.artefacts import CONFIG
from adaptive.calibration import CalibrationError, CalibrationMap
from adaptive.engine import TokenIds
from adaptive.scoring import MIN_LABEL_MASS, Labels
from adaptive.self_evaluation import LITERAL_QUESTION, SelfEvaluationQuestion
from server.new_tokens import NewIds
from server.probe import UpstreamModel, UpstreamProfile

FILE: Final = CONFIG
FORMAT: Final = 1
MAX_LABELS: Final = 128
"""vLLM's most `logprob_token_ids` of one request (`MAX_LOGPROB_TOKEN_IDS` in vllm/sampling_params.py)."""

_TEXT: Final = ("question", "win_or_tie", "loss")
_IDS: Final = ("suffix_ids", "win_or_tie_ids", "loss_ids")
_READ_OUT: Final = ("win_or_tie_ids", "loss_ids")
_ALONE: Final = ("read_out", "calibration", "min_label_mass")
_NEW: Final = "new_ids_from"
_MAX_BYTES: Final = 1 << 20


class SelfEvaluationConfigError(Exception):
    """A file that cannot be followed. The message names file, field and remedy."""


@dataclass(frozen=True, slots=True)
class QuestionIds:
    """A question in the model's own token ids. suffix: from the end of the response to where the labels are read."""

    suffix: TokenIds
    labels: Labels


@dataclass(frozen=True, slots=True)
class SelfEvaluationConfig:
    """How a model is asked about its responses. read_out: labels at every token, None if it was not trained to.

    file: where it is written, None for the literal question, which any model is asked. min_label_mass: of the question.
    calibration, read_out_calibration: of the question's scores and of the read-out's, None where they are taken raw.
    new_ids_from: from that id on the model's ids are for its self-evaluation alone, None where it has none of these.
    """

    question: SelfEvaluationQuestion | QuestionIds = LITERAL_QUESTION
    read_out: Labels | None = None
    file: Path | None = None
    min_label_mass: float = MIN_LABEL_MASS
    calibration: CalibrationMap | None = None
    read_out_calibration: CalibrationMap | None = None
    new_ids_from: int | None = None

    @property
    def new_ids(self) -> TokenIds:
        """The ids, ascending, that it names and no text has."""
        if self.new_ids_from is None:
            return ()
        named = self.read_out.ids if self.read_out is not None else ()
        if isinstance(self.question, QuestionIds):
            named += self.question.suffix + self.question.labels.ids
        return tuple(sorted({each for each in named if each >= self.new_ids_from}))

    @property
    def trained_suffix(self) -> bool:
        """The question is of new tokens. They follow a response as it stands: its end token is part of it."""
        return isinstance(self.question, QuestionIds) and self.question.suffix[0] in self.new_ids

    @property
    def name(self) -> str:
        """What people are told is in force."""
        return "the literal question" if self.file is None else str(self.file)

    @property
    def about(self) -> str:
        """What people are told beside the name: what it asks by, and what of it is calibrated."""
        if not (self.trained_suffix and isinstance(self.question, QuestionIds)):
            return self.about_calibration
        count = len(self.question.suffix)
        return f"Its question is {count} trained token{'s' if count > 1 else ''}. {self.about_calibration}"

    @property
    def about_calibration(self) -> str:
        """What people are told of whether its scores can be taken for probabilities."""
        question, read_out = (
            "not calibrated" if each is None else "calibrated" for each in (self.calibration, self.read_out_calibration)
        )
        said = f"Its scores are {question}."
        return said if self.read_out is None else f"{said} Its read-out's labels are known too, and {read_out}."


LITERAL: Final = SelfEvaluationConfig()


def read_config(path: Path) -> SelfEvaluationConfig:
    """Return the configuration in a file, or in a directory that holds one. Raises `SelfEvaluationConfigError`."""
    file = path / FILE if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _wrong(
            file, f"cannot be read ({error.strerror}); give the file, or the directory that holds it"
        ) from error
    try:
        value = json.loads(content) if len(content) <= _MAX_BYTES else None
    except ValueError as error:
        raise _wrong(file, f"is not JSON ({error}); correct it there") from error
    if not isinstance(value, dict):
        raise _wrong(file, 'must be a JSON object such as {"format": 1, "question": ...}')
    return replace(_Reader(file, _vocabulary(file.with_name("config.json"))).config(value), file=file)


def in_force(
    explicit: SelfEvaluationConfig | None, model: UpstreamModel | None, own: str | None = None
) -> SelfEvaluationConfig:
    """Return what a served model is asked by: `explicit`, else what lies in its directory, else the literal question.

    The directory is the `root` of `/v1/models`, where that is one on this machine. A relative one means something only
    to the engine that we started ourselves, on the model `own`. Raises `SelfEvaluationConfigError`.
    """
    if explicit is not None:
        return explicit
    root = None if model is None else model.root
    if not root or not (Path(root).is_absolute() or root == own):
        return LITERAL
    file = Path(root, FILE)
    return read_config(file) if file.is_file() else LITERAL


class SelfEvaluationConfigs:
    """What is in force for each model of the upstream. A file is read once for as long as the upstream is the same.

    explicit: set by the operator, for every model. own: the setting `model`. profile: what is known of the upstream.
    """

    def __init__(
        self,
        profile: Callable[[], UpstreamProfile | None],
        *,
        explicit: SelfEvaluationConfig | None = None,
        own: str | None = None,
    ) -> None:
        self._profile = profile
        self._explicit = explicit
        self._own = own
        self._read_for: UpstreamProfile | None = None
        self._known: dict[str, SelfEvaluationConfig] = {}

    def of(self, model: str | None) -> SelfEvaluationConfig:
        """Return what that model is asked by, None for the upstream's default. A wrong file is logged and left out."""
        served = self._served(model)
        if self._explicit is not None or served is None:
            return self._explicit or LITERAL
        known = self._known.get(served.name)
        if known is None:
            # A small file on a local disk, once per model: not worth a thread.
            known = self._known[served.name] = self._read(served)
        return known

    def new_ids(self, model: str | None) -> NewIds | None:
        """Return the ids that no client may ask that model for, None if it has none. An alias is its model."""
        if model is not None and ":" in model and self._served(model) is None:
            model = model.rpartition(":")[0]
        config = self.of(model)
        return NewIds(config.new_ids_from, config.new_ids) if config.new_ids_from is not None else None

    def lacks_read_out(self, model: str | None) -> bool:
        """Return True if it is known that the model has no read-out; of a model that is not served nothing is."""
        known = self._explicit is not None or self._served(model) is not None
        return known and self.of(model).read_out is None

    def _served(self, name: str | None) -> UpstreamModel | None:
        profile = self._profile()
        if profile is not self._read_for:
            self._read_for = profile
            self._known.clear()
        models = () if profile is None else profile.models
        if name is None:
            return models[0] if models else None
        return next((model for model in models if model.name == name), None)

    def _read(self, model: UpstreamModel) -> SelfEvaluationConfig:
        log = structlog.get_logger(__name__)
        try:
            config = in_force(None, model, self._own)
        except SelfEvaluationConfigError as error:
            log.warning("self_evaluation_config_ignored", model=model.name, problem=str(error))
            return LITERAL
        log.info(
            "self_evaluation",
            model=model.name,
            in_force=config.name,
            calibrated=config.calibration is not None,
            read_out=config.read_out is not None,
            read_out_calibrated=config.read_out_calibration is not None,
        )
        return config


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes a file's fields apart. vocabulary: how many token ids the model beside the file has, None if not known."""

    file: Path
    vocabulary: int | None

    def config(self, value: Mapping[str, Any]) -> SelfEvaluationConfig:
        written = value.get("format")
        if written != FORMAT or isinstance(written, bool):
            raise self._wrong("format", f"is {written!r}; this version of Preamble reads {FORMAT}")
        self._no_others(value, ("format", _NEW, *_TEXT, *_IDS, *_ALONE), "")
        read_out, read_out_calibration = self._read_out(value.get("read_out"))
        about = SelfEvaluationConfig(
            read_out=read_out,
            min_label_mass=self._share(value.get("min_label_mass", MIN_LABEL_MASS), "min_label_mass"),
            calibration=self._calibration(value.get("calibration"), "calibration"),
            read_out_calibration=read_out_calibration,
            new_ids_from=self._id(value[_NEW], _NEW) if value.get(_NEW) is not None else None,
        )
        text, ids = ([name for name in names if name in value] for names in (_TEXT, _IDS))
        if text and ids:
            raise self._wrong(ids[0], f"stands beside {text[0]!r}; give the question as text or as token ids, not both")
        if not text and not ids:
            if not any(value.get(name) is not None for name in _ALONE):
                raise self._wrong("question", f"is missing; give {', '.join(_TEXT)}, or {', '.join(_IDS)}")
            return about
        for name in _IDS if ids else _TEXT:
            if name not in value:
                raise self._wrong(name, f"is missing; it goes with {(ids or text)[0]!r}")
        return replace(about, question=self._question_ids(value) if ids else self._question(value))

    def _question(self, value: Mapping[str, Any]) -> SelfEvaluationQuestion:
        text = value["question"]
        if not isinstance(text, str) or not text.strip():
            raise self._wrong("question", "must be the text of the question")
        win_or_tie, loss = (self._spellings(value[name], name) for name in ("win_or_tie", "loss"))
        self._distinct("loss", win_or_tie + loss)
        return SelfEvaluationQuestion(text, win_or_tie, loss)

    def _question_ids(self, value: Mapping[str, Any]) -> QuestionIds:
        return QuestionIds(self._token_ids(value["suffix_ids"], "suffix_ids"), self._labels(value, ""))

    def _read_out(self, value: Any) -> tuple[Labels | None, CalibrationMap | None]:
        if value is None:
            return None, None
        if not isinstance(value, dict):
            raise self._wrong("read_out", f"must be an object with {' and '.join(_READ_OUT)}")
        self._no_others(value, (*_READ_OUT, "calibration"), "read_out.")
        for name in _READ_OUT:
            if name not in value:
                raise self._wrong(f"read_out.{name}", "is missing; give the token ids of both labels")
        return self._labels(value, "read_out."), self._calibration(value.get("calibration"), "read_out.calibration")

    def _calibration(self, value: Any, field: str) -> CalibrationMap | None:
        try:
            return None if value is None else CalibrationMap.from_plain(value, field)
        except CalibrationError as error:
            raise self._wrong(error.field, error.problem) from error

    def _share(self, value: Any, field: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise self._wrong(field, f"is {value!r}; it is a number from 0 to 1")
        return float(value)

    def _labels(self, value: Mapping[str, Any], within: str) -> Labels:
        labels = Labels(*(self._token_ids(value[name], within + name) for name in _READ_OUT))
        self._distinct(f"{within}loss_ids", labels.ids)
        if len(labels.ids) > MAX_LABELS:
            raise self._wrong(f"{within}loss_ids", f"makes {len(labels.ids)} labels; vLLM reads at most {MAX_LABELS}")
        return labels

    def _spellings(self, value: Any, field: str) -> tuple[str, ...]:
        found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
        if not found or not all(isinstance(each, str) and each for each in found):
            raise self._wrong(field, "must be a label's text, or a list of its spellings")
        return found

    def _token_ids(self, value: Any, field: str) -> TokenIds:
        if not isinstance(value, list) or not value:
            raise self._wrong(field, "must be a list of at least one token id")
        for place, each in enumerate(value):
            self._id(each, f"{field}[{place}]")
            if self.vocabulary is not None and each >= self.vocabulary:
                raise self._wrong(
                    f"{field}[{place}]",
                    f"is {each}, and the model beside it has ids up to {self.vocabulary - 1} only; take the ids from "
                    "its own tokenizer",
                )
        return tuple(value)

    def _id(self, value: Any, field: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(field, f"is {value!r}; a token id is a whole number from 0")
        return value

    def _distinct(self, field: str, labels: tuple[Any, ...]) -> None:
        ordered = sorted(labels)
        twice = next((each for each, after in pairwise(ordered) if each == after), None)
        if twice is not None:
            raise self._wrong(field, f"leads to the label {twice!r} twice; each may stand once, on one side only")

    def _no_others(self, value: Mapping[str, Any], known: tuple[str, ...], within: str) -> None:
        unknown = sorted(value.keys() - set(known))
        if unknown:
            raise self._wrong(within + unknown[0], f"is no field; the fields: {', '.join(known)}")

    def _wrong(self, field: str, problem: str) -> SelfEvaluationConfigError:
        return _wrong(self.file, f"{field} {problem}")


def _wrong(file: Path, problem: str) -> SelfEvaluationConfigError:
    return SelfEvaluationConfigError(f"{file}: {problem}.")


def _vocabulary(model_config: Path) -> int | None:
    """Return the vocabulary's size by the checkpoint's config.json, None where there is none that says so."""
    try:
        value = json.loads(model_config.read_bytes())
        size = value.get("vocab_size") or value["text_config"]["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return size if isinstance(size, int) else None
