"""What the demo says of how the model judges itself. It knows what the proxy knows: the directory of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adaptive.policy import ScorerName
from server.probe import UpstreamModel
from server.self_evaluation_config import LITERAL, SelfEvaluationConfig, SelfEvaluationConfigError, in_force

_LITERAL: Final = "The model is asked the literal question"
_CALIBRATED: Final = "A score is P(win or tie): how likely it is that a fresh sample would not do better."
_READ_OUT: Final = "A second score comes with every token of a reply and costs nothing: the read-out."
_RAW: Final = "Its scores are not calibrated: they rank replies, and are no probabilities."


@dataclass(frozen=True, slots=True)
class Judgement:
    """text: for a person. calibrated: scores of self-evaluation can be taken for probabilities.

    scorer: the policy's scorer that costs least: a calibrated read-out, where there is one.
    """

    text: str
    calibrated: bool
    scorer: ScorerName = ScorerName.SELF_EVALUATION


def judgement_of(model: str, root: object) -> Judgement:
    """Return how a served model judges itself. root: what `/v1/models` says of where it was loaded from."""
    try:
        config = in_force(None, UpstreamModel(model, None, root if isinstance(root, str) else None))
    except SelfEvaluationConfigError as error:
        return Judgement(f"{error} {_said(LITERAL)}", calibrated=False)
    if config.read_out_calibration is not None:
        return Judgement(f"{_said(config)} {_READ_OUT}", config.calibration is not None, ScorerName.READ_OUT)
    return Judgement(_said(config), calibrated=config.calibration is not None)


def _said(config: SelfEvaluationConfig) -> str:
    calibrated = config.calibration is not None
    if config.trained_suffix:
        how = "Trained self-evaluation is in force, " + ("calibrated." if calibrated else "not calibrated.")
    elif config.file is None:
        how = f"{_LITERAL}."
    else:
        how = f"The model is asked by {Path(config.file).name}, " + ("calibrated." if calibrated else "not calibrated.")
    return f"{how} {_CALIBRATED if calibrated else _RAW}"
