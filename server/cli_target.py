"""`preamble selfeval policy`: the policy for a share of the best-of-N gain, or for a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from adaptive.policy import ScorerName
from server.cli_eval import parse_checkpoints
from server.cli_options import AsJson
from server.terminal import report_console

if TYPE_CHECKING:
    from adaptive.evaluation.targets import Target

_DATASET_HELP = "The data set that `preamble eval` has sampled: a name, or a JSONL file."


def target_command(  # noqa: PLR0917 -- typer passes them by name, one per option
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=_DATASET_HELP)],
    gain: Annotated[
        float | None,
        typer.Option("--gain", metavar="SHARE", help="The cheapest policy with this share of the gain of best-of-n."),
    ] = None,
    samples: Annotated[
        float | None,
        typer.Option("--samples", metavar="X", help="The best policy with at most so many samples, on average."),
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option("--tokens", metavar="X", help="The best with at most so many tokens per prompt, with scoring."),
    ] = None,
    scorer: Annotated[
        ScorerName, typer.Option(help="Where the policy's scores come from.")
    ] = ScorerName.SELF_EVALUATION,
    measure: Annotated[Literal["passed", "reward"], typer.Option(help="What counts as quality.")] = "reward",
    n: Annotated[int, typer.Option("--n", min=2, max=64, help="Recorded candidates per prompt.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts, as many.")] = None,
    seed: Annotated[int, typer.Option(help="That of the sampling.")] = 0,
    checkpoints: Annotated[str, typer.Option(help="Where candidates were scored, in tokens.")] = "32,64,128,256",
    prefill_weight: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="What a prompt token computed for a score costs, in generated ones.")
    ] = 1.0,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its served name. Unset: the one that was sampled last.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The recordings. Unset: results/eval-<DATASET>/candidates.jsonl."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the policy is written.")] = Path("policy.json"),
    force: Annotated[
        bool, typer.Option("--force", help="Write the policy that comes nearest if none does what is asked for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the policy for a target on recorded candidates, and write it as a file for `preamble serve --policy-file`.

    Give one of --gain, --samples and --tokens. Half of the prompts choose the policy, the other half tells what it is
    worth. If no policy does what is asked for, or full best-of-n gains nothing, no file is written without --force, and
    the exit status is 1.
    """
    from adaptive.evaluation.targets import Measure  # noqa: PLC0415 -- `serve` should not wait for it
    from server.target_command import Options, run_target  # noqa: PLC0415 -- the same

    options = Options(
        dataset=dataset,
        target=_target(gain, samples, tokens),
        scorer=scorer,
        measure=Measure(measure),
        n=n,
        limit=limit,
        seed=seed,
        checkpoints=parse_checkpoints(checkpoints),
        prefill_weight=prefill_weight,
        model=model,
        recordings=cache,
        out=out,
        force=force,
        as_json=as_json,
    )
    written = run_target(options, out=report_console(), err=Console(stderr=True))
    if not written:
        raise typer.Exit(1)


def _target(gain: float | None, samples: float | None, tokens: float | None) -> Target:
    from adaptive.evaluation.targets import Aim, Target, TargetError  # noqa: PLC0415 -- as above

    given = {Aim.GAIN: gain, Aim.SAMPLES: samples, Aim.TOKENS: tokens}
    targets = [(aim, amount) for aim, amount in given.items() if amount is not None]
    if len(targets) != 1:
        raise typer.BadParameter("give one of --gain, --samples and --tokens", param_hint="target")
    try:
        return Target(*targets[0])
    except TargetError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{targets[0][0].value}") from error
