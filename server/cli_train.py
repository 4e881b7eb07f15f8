"""`preamble selfeval train` and `preamble selfeval calibrate`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from server.checkpoint import CheckpointError, build_checkpoint
from server.cli_options import AsJson, CacheDir, Config
from server.eval_errors import EvalError
from server.interrupts import sigterm_interrupts
from server.settings import load_settings
from server.terminal import report_console, say, shown_progress
from server.training_progress import Training

_WAY_HELP: Final = (
    "tokens: new soft tokens after the answer, and labels for them. read_out: labels read at every token. fine_tuned: "
    "adapters for the literal question, merged. literal: a calibration map alone. tokens and read_out may share a "
    "checkpoint: give both."
)
_METHOD_HELP: Final = "Of the map. Unset: what prompts that were kept out of the fit speak for."
_DATA_HELP: Final = "What `preamble selfeval data` wrote, or its directory."
_SCORED_HELP: Final = "JSONL of scored examples, as in training/scored-*.jsonl of `preamble selfeval train`"


class WayName(StrEnum):
    """The ways of `adaptive.training.ways`, which loads torch."""

    TOKENS = "tokens"
    READ_OUT = "read_out"
    FINE_TUNED = "fine_tuned"
    LITERAL = "literal"


def train_command(  # noqa: PLR0917 -- typer passes them by name, one per option
    data: Annotated[Path, typer.Option(metavar="DIR", help=_DATA_HELP)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the checkpoint and all about it go.")],
    way: Annotated[
        list[WayName] | None,
        typer.Option(help=f"{_WAY_HELP} Unset: tokens and read_out."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The model that gave the answers. Unset: the embedded one, built if missing."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="Times that every prompt is seen. Unset: as suits the way.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-8, max=10.0, help="At its highest. Unset: as suits the way.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=32, help="New label rows, per label.")] = 4,
    soft_text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the soft tokens start from. Unset: a short question.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where training runs.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="On the processor. Unset: torch's own choice.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of prompts, of cuts, and of where new rows start.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Steps between validations, at which training is saved.")] = 100,
    cache_dir: CacheDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Train a model to judge its own answers, and make an ordinary checkpoint of it, calibrated.

    The same command goes on where an interrupted one was. Needs the engine's extra (torch); a GPU makes it faster.
    """
    ways = tuple(dict.fromkeys(way or (WayName.TOKENS, WayName.READ_OUT)))
    _check_installed("torch", "transformers", "safetensors", *(["peft"] if WayName.FINE_TUNED in ways else []))
    from adaptive.training.checkpoint import CheckpointError as ExtensionError  # noqa: PLC0415 -- seconds, and torch
    from adaptive.training.loop import TrainingError  # noqa: PLC0415
    from adaptive.training.ways import Way  # noqa: PLC0415
    from server.selfeval_calibrate import CalibrateError  # noqa: PLC0415
    from server.selfeval_train import RECIPES, SOFT_TEXT, TrainOptions, available_device, run_train  # noqa: PLC0415

    settings = load_settings(cache_dir=cache_dir, config=config)
    recipes = {each: replace(recipe, seed=seed) for each, recipe in RECIPES.items()}
    if epochs is not None:
        recipes = {each: replace(recipe, epochs=epochs) for each, recipe in recipes.items()}
    if learning_rate is not None:
        recipes = {each: replace(recipe, learning_rate=learning_rate) for each, recipe in recipes.items()}
    err = Console(stderr=True)
    try:
        with sigterm_interrupts():
            options = TrainOptions(
                data=data,
                checkpoint=checkpoint or _embedded(settings.cache_dir, err),
                out=out,
                ways=tuple(Way(each) for each in ways),
                rows=rows,
                soft_text=SOFT_TEXT if soft_text is None else soft_text,
                recipes=tuple(recipes.items()),
                device=available_device(device),
                threads=threads,
                every=every,
                seed=seed,
            )
            with Training(err) as shown:
                result = run_train(options, shown.tell)
    except (TrainingError, ExtensionError, CalibrateError, CheckpointError) as error:
        raise EvalError(str(error)) from error
    if as_json:
        typer.echo(json.dumps(result.report))
        return
    told = report_console()
    for name, curve in result.curves.items():
        say(told, f"{name}: {len(curve)} validations, the last after {curve[-1].groups} prompts")
    for source, calibrated in result.calibrated.items():
        say(told, f"\n{source.replace('_', '-')}")
        for line in calibrated.lines():
            say(told, line)
    say(told, f"\n{out}: training.json tells the rest, training/curve.png shows it")


def calibrate_command(  # noqa: PLR0917 -- as above
    fit_on: Annotated[Path, typer.Option("--fit", metavar="FILE", help=f"{_SCORED_HELP}: what the map is fitted to.")],
    measure_on: Annotated[
        Path, typer.Option("--measure", metavar="FILE", help="The same, of other prompts: what the map is measured on.")
    ],
    config: Annotated[
        Path,
        typer.Option(metavar="FILE_OR_DIR", help="preamble_self_evaluation.json, where the map goes; made if missing."),
    ],
    source: Annotated[
        Literal["question", "read_out"], typer.Option(help="What the scores came from.", case_sensitive=True)
    ] = "question",
    method: Annotated[
        Literal["temperature", "logistic", "isotonic"] | None, typer.Option(help=_METHOD_HELP, case_sensitive=True)
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where report.json and reliability.png go. Unset: nowhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a calibration map to scored answers, write it where it belongs, and say how good it is on other prompts."""
    from adaptive.training.fit import Method  # noqa: PLC0415 -- scikit-learn
    from server.selfeval_calibrate import CalibrateError, Source, calibrate  # noqa: PLC0415

    try:
        found = calibrate(
            fit_on,
            measure_on,
            config,
            source=Source(source),
            method=None if method is None else Method(method),
            resamples=resamples,
            seed=seed,
        )
    except CalibrateError as error:
        raise EvalError(str(error)) from error
    if out is not None:
        found.write(out)
    if as_json:
        typer.echo(json.dumps(found.report))
        return
    told = report_console()
    for line in found.lines():
        say(told, line)


def _embedded(cache_dir: Path, err: Console) -> Path:
    """Return the embedded model's checkpoint. Raises `CheckpointError`."""
    with shown_progress(err) as progress:
        return build_checkpoint(cache_dir, progress)


def _check_installed(*names: str) -> None:
    missing: Sequence[str] = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise EvalError(
            f"Training needs {', '.join(missing)}, which the extra engine-cpu brings, or engine-gpu: `make serve` "
            "installs the one that fits this machine."
        )
