"""`preamble eval`: what adaptive best-of-N is worth on a data set, from one sampling of the real upstream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adaptive.policy import ScorerName, stages_of
from server.cli_options import AsJson, CacheDir, Config, DataDir, EngineArgs, Upstream
from server.settings import load_settings
from server.terminal import report_console

_DATASET_HELP = "`ifeval`, `gsm8k`, or a JSONL file: a prompt and its verifier on each line."
_MODEL_HELP = "Served name of the model to ask; without an upstream, the embedded engine's model."


def eval_command(  # noqa: PLR0917 -- typer passes them by name, one per option
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=_DATASET_HELP)],
    n: Annotated[int, typer.Option("--n", min=2, max=64, help="Candidates per prompt.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts, as many.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.01, max=2.0, help="Of every candidate.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Where all seeds are derived from.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Candidates at a time.")] = 32,
    checkpoints: Annotated[str, typer.Option(help="Where candidates are scored, in tokens.")] = "32,64,128,256",
    scorers: Annotated[
        str,
        typer.Option(
            help="Who judges, by name, with commas between; all: whoever can; staged: read_out and self_evaluation. "
            "group_confidence is slow."
        ),
    ] = "all",
    thresholds: Annotated[
        str, typer.Option(help="Of adaptive sampling; auto: at quantiles of the scores, and the default policy's.")
    ] = "auto",
    prefill_weight: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="What a prompt token computed for a score costs, in generated ones.")
    ] = 1.0,
    upstream: Upstream = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help=_MODEL_HELP)] = None,
    engine_args: EngineArgs = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where candidates are kept. Unset: candidates.jsonl in --out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the report goes. Unset: results/eval-<DATASET>.")
    ] = None,
    rescore: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Score the candidates of this recording, with its temperature and length; sample none. Needs --out.",
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Report on the candidates that are there; ask no upstream.")
    ] = False,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show quality against tokens: one sample, best-of-N, adaptive and pruned sampling, replayed on one recording.

    Candidates are sampled once and kept on disk: an interrupted run goes on where it was, and a report costs nothing.
    """
    from server.eval_command import Options, run_eval  # noqa: PLC0415 -- `serve` should not wait for it

    if rescore is not None:
        _check_rescore(rescore, out, report_only=report_only)
    settings = load_settings(
        config=config,
        upstream=upstream,
        model=model,
        engine_args=engine_args,
        data_dir=data_dir,
        cache_dir=cache_dir,
    )
    options = Options(
        dataset=dataset,
        n=n,
        limit=limit,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        concurrency=concurrency,
        checkpoints=parse_checkpoints(checkpoints),
        scorers=_scorers(scorers),
        thresholds=_thresholds(thresholds),
        prefill_weight=prefill_weight,
        cache=cache,
        out=out,
        rescore=rescore,
        report_only=report_only,
        as_json=as_json,
    )
    run_eval(settings, options, out=report_console(), err=Console(stderr=True))


def parse_checkpoints(text: str) -> tuple[int, ...]:
    """Return the checkpoints in `32,64`, ascending. Raises `typer.BadParameter`."""
    try:
        found = sorted({int(each) for each in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise typer.BadParameter(
            f"{text!r}: write whole numbers of tokens, 1 or more: 32,64,128", param_hint="--checkpoints"
        )
    return tuple(found)


def _scorers(text: str) -> tuple[ScorerName, ...] | None:
    if text == "all":
        return None
    names = [each.strip() for each in text.split(",")]
    wrong = [name for name in names if name not in set(ScorerName)]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is none of {', '.join(ScorerName)}", param_hint="--scorers")
    wanted = {part for name in names for part in stages_of(ScorerName(name))}
    return tuple(each for each in ScorerName if each in wanted)


def _check_rescore(rescore: Path, out: Path | None, *, report_only: bool) -> None:
    hint = "--rescore"
    if report_only:
        raise typer.BadParameter("asks the upstream for scores; leave out --report-only", param_hint=hint)
    if out is None:
        raise typer.BadParameter("needs --out DIR: every way of scoring has a directory of its own", param_hint=hint)
    if not rescore.is_file():
        raise typer.BadParameter(f"{rescore} is no file; name a candidates.jsonl", param_hint=hint)


def _thresholds(text: str) -> tuple[float, ...]:
    if text == "auto":
        return ()
    try:
        found = sorted({float(each) for each in text.split(",")})
    except ValueError:
        found = [-1.0]
    if not 0.0 <= found[0] <= found[-1] <= 1.0:
        raise typer.BadParameter(f"{text!r}: write numbers from 0 to 1: 0.5,0.8, or auto", param_hint="--thresholds")
    return tuple(found)
