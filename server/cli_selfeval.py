"""`preamble selfeval`: data, training and calibration of self-evaluation, and what it is good for.

The commands import what is heavy.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console

from adaptive.splits import SHARES, Shares, Split
from server.cli_compare import compare_command
from server.cli_eval import parse_checkpoints
from server.cli_options import AsJson, CacheDir, Config, DataDir, EngineArgs, Upstream, of_setting
from server.cli_target import target_command
from server.cli_train import calibrate_command, train_command
from server.settings import load_settings, mask_arguments
from server.terminal import report_console

selfeval_app = typer.Typer(no_args_is_help=True, help="Make self-evaluation worth believing.")
selfeval_app.command("train")(train_command)
selfeval_app.command("calibrate")(calibrate_command)
selfeval_app.command("compare")(compare_command)
selfeval_app.command("policy")(target_command)

_MODEL_HELP: Final = "Served name of the model to ask; without an upstream, the embedded engine's model."
_SPLITS_HELP: Final = (
    "Shares of prompts for train, calibration and test, by the prompt's text. `preamble eval NAME:test` has the test "
    "prompts of the default."
)
_JUDGE_KEY_HELP: Final = "Environment variable that holds the judge's API key."


@selfeval_app.callback()
def selfeval() -> None:
    """Make self-evaluation worth believing."""


@selfeval_app.command()
def data(  # noqa: PLR0917 -- typer passes them by name, one per option
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the examples, their card and what is kept go.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME_OR_FILE", help="A data set of `preamble eval`, or a JSONL file. Repeatable."),
    ] = None,
    outcomes: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Prompts of an outcome log's JSONL export. Repeatable.")
    ] = None,
    preferences: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="JSONL of prompt, chosen and rejected, for --reward preferences. Repeatable."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts of each of these, as many.")] = None,
    constitutions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL of constitutions to mix in: id, principles or text.")
    ] = None,
    constitution_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of prompts that get one of them.")
    ] = 0.3,
    reward: Annotated[
        Literal["verifier", "reward_model", "judge", "preferences"],
        typer.Option(help="What says how good an answer is.", case_sensitive=True),
    ] = "verifier",
    reward_directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A sequence classifier for reward_model, run in this process.")
    ] = None,
    reward_upstream: Annotated[str | None, of_setting("reward_upstream")] = None,
    judge_upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="Base URL of an OpenAI-compatible server for judge.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="The judge's name there.")] = None,
    judge_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help=_JUDGE_KEY_HELP)] = None,
    judge_max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a judge's answer.")] = 16,
    n: Annotated[int, typer.Option("--n", min=2, max=128, help="Answers per prompt.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.01, max=2.0, help="Of every answer.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Where all seeds are derived from.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Prompts at a time, each with all its answers.")] = 8,
    cuts: Annotated[int, typer.Option(min=0, help="Random lengths at which each answer is an example.")] = 4,
    splits: Annotated[str, typer.Option(help=_SPLITS_HELP)] = str(SHARES),
    file_format: Annotated[Literal["jsonl", "parquet"], typer.Option("--format", help="Of the data file.")] = "jsonl",
    upstream: Upstream = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help=_MODEL_HELP)] = None,
    engine_args: EngineArgs = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Sample answers, have them rewarded, and write examples of P(win or tie) to train and calibrate on.

    What was had is kept in --out at once: the same command goes on where an interrupted one was.
    """
    from server.selfeval_data import Format, Options, Reward, run_data  # noqa: PLC0415 -- `serve` should not wait

    settings = load_settings(
        config=config,
        upstream=upstream,
        model=model,
        engine_args=engine_args,
        data_dir=data_dir,
        cache_dir=cache_dir,
        reward_upstream=reward_upstream,
    )
    options = Options(
        out=out,
        tasks=tuple(tasks or ()),
        outcomes=tuple(outcomes or ()),
        preferences=tuple(preferences or ()),
        limit=limit,
        constitutions=constitutions,
        constitution_share=constitution_share,
        reward=Reward(reward),
        reward_directory=reward_directory,
        judge_upstream=judge_upstream,
        judge_model=judge_model,
        judge_key=_key(judge_key_env),
        judge_max_tokens=judge_max_tokens,
        n=n,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        concurrency=concurrency,
        cuts=cuts,
        shares=_shares(splits),
        format=Format(file_format),
        command=("preamble", *_without_secrets(sys.argv[1:])),
        as_json=as_json,
    )
    run_data(settings, options, out=report_console(), err=Console(stderr=True))


@selfeval_app.command()
def table(
    data_file: Annotated[Path, typer.Argument(metavar="DATA", help="What `selfeval data` wrote, or its directory.")],
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="JSONL of scores: id, answer, tokens, final, scorer, value; or the scored examples of `train`. "
            "Repeatable.",
        ),
    ] = None,
    split: Annotated[
        list[Split] | None,
        typer.Option(help="Only prompts of this split. Repeatable; choose families on train only."),
    ] = None,
    checkpoints: Annotated[str, typer.Option(help="Where answers are compared besides their end.")] = "16,32,64,128",
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show for each family how often answers pass, and how well scorers rank two answers to one prompt."""
    from server.selfeval_table import Options, run_table  # noqa: PLC0415 -- as above

    options = Options(
        data=data_file,
        scores=tuple(scores or ()),
        splits=tuple(split or ()),
        places=parse_checkpoints(checkpoints),
        resamples=resamples,
        seed=seed,
        as_json=as_json,
    )
    run_table(options, out=report_console(), err=Console(stderr=True))


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """Return the command line for the data card: secrets among the engine's arguments as asterisks."""
    shown = list(arguments)
    for place, argument in enumerate(shown):
        if argument.startswith("--engine-args="):
            shown[place] = f"--engine-args={_masked(argument.partition('=')[2])}"
        elif place and shown[place - 1] == "--engine-args":
            shown[place] = _masked(argument)
    return shown


def _masked(line: str) -> str:
    return shlex.join(mask_arguments(shlex.split(line)))


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise typer.BadParameter(f"the environment has no {variable}; set it.", param_hint="--judge-key-env")
    return key


def _shares(text: str) -> Shares:
    try:
        train, calibration, test = map(float, text.split(","))
        return Shares(train, calibration, test)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r}: write three shares whose sum is 1: {SHARES}", param_hint="--splits"
        ) from error
