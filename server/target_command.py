"""`preamble selfeval policy`: from recorded candidates the policy for a target, told with intervals, and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table

from adaptive.evaluation.recording import Setup, latest
from adaptive.evaluation.statistics import LEVEL, Estimate
from adaptive.evaluation.study import Prompt
from adaptive.evaluation.targets import Aim, Expected, Measure, Proposal, Search, Target, TargetError, propose
from adaptive.evaluation.tasks import DataSet, TaskError, load
from adaptive.policy import ScorerName, stages_of
from server.eval_cache import RecordingFile
from server.eval_errors import EvalError
from server.eval_prompts import recorded_prompts
from server.machine import this_machine
from server.policy import to_text
from server.policy_file import policy_fields, write_policy_file
from server.terminal import say

_COLUMNS: Final = ("", "samples", "tokens", "passed %", "reward %", "gain %")
_BUDGETS: Final = {Aim.SAMPLES: "samples", Aim.TOKENS: "tokens"}


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    dataset: a name or a path. limit: prompts, None for all. model: served name, None for the one that was sampled last.
    recordings: None for where `preamble eval` keeps them. force: write the file in any case.
    """

    dataset: str
    target: Target
    scorer: ScorerName
    measure: Measure
    n: int
    limit: int | None
    seed: int
    checkpoints: tuple[int, ...]
    prefill_weight: float
    model: str | None
    recordings: Path | None
    out: Path
    force: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """A proposal, and everything that one has to know to believe it."""

    proposal: Proposal
    data: DataSet
    setup: Setup
    prompts: Sequence[Prompt]
    options: Options

    def about(self) -> dict[str, Any]:
        """Return what the file says of the policy."""
        proposal, options, setup = self.proposal, self.options, self.setup
        machine = this_machine()
        sampled = [recording.sampled_at for prompt in self.prompts for recording in prompt.candidates]
        return {
            "target": {proposal.target.aim.value: proposal.target.amount},
            "measure": options.measure.value,
            "problem": proposal.problem,
            "expected": _plain(proposal.expected),
            "one_sample": _plain(proposal.one_sample),
            "best_of_n": _plain(proposal.best_of_n),
            "on_the_prompts_that_chose": _plain(proposal.seen),
            "best_of_n_over_one_sample_on_all_prompts": _finite(asdict(proposal.full_gain)),
            "interval": LEVEL,
            "policies_tried": proposal.tried,
            "data": {
                "name": self.data.name,
                "about": self.data.about,
                "prompts_that_chose": proposal.chosen_on,
                "prompts_that_tell": proposal.told_on,
                "n": options.n,
                "seed": options.seed,
                "checkpoints": list(options.checkpoints),
                "prefill_weight": options.prefill_weight,
                "sampled_to": _day(max(sampled)),
            },
            "model": {
                "name": setup.model,
                "root": setup.root,
                "fingerprint": setup.fingerprint,
                "question": setup.question,
                "temperature": setup.temperature,
                "max_tokens": setup.max_tokens,
            },
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "preamble": machine.preamble,
            "commit": machine.commit,
        }


def run_target(options: Options, *, out: Console, err: Console) -> bool:
    """Seek the policy, tell what to expect of it and write it; return whether it was written.

    One that does not do what was asked for is only written with `force`. Raises `EvalError` where none can be sought.
    """
    found = _found(options, err)
    problem = found.proposal.problem
    write = problem is None or options.force
    about = found.about()
    if write:
        try:
            write_policy_file(options.out, found.proposal.policy, about)
        except OSError as error:
            raise EvalError(f"{options.out} cannot be written ({error.strerror}). Give another --out.") from error
    if options.as_json:
        written = str(options.out) if write else None
        typer.echo(json.dumps({"policy": policy_fields(found.proposal.policy), "about": about, "written": written}))
    else:
        _show(found, out)
    if problem is not None:
        say(err, problem, style="yellow" if write else "red")
        if not write:
            say(err, f"{options.out} was not written; --force writes the policy that comes nearest.", style="red")
    if write and not options.as_json:
        say(out, f"Written: {options.out}. `preamble serve --policy-file {options.out}` follows it.")
    return write


def _found(options: Options, err: Console) -> _Found:
    try:
        data = load(options.dataset)
    except TaskError as error:
        raise EvalError(str(error)) from error
    file = RecordingFile(options.recordings or Path("results") / f"eval-{data.name}" / "candidates.jsonl")
    if file.ignored:
        say(err, f"Ignored: {file.ignored} lines of {file.path} that cannot be read (a killed run tears its last one).")
    made = latest(file.recordings, options.model)
    if made is None:
        whose = "" if options.model is None else f" of {options.model}"
        raise EvalError(f"{file.path} has no candidates{whose}. Sample some: preamble eval {options.dataset}")
    setup = made.setup
    prompts = recorded_prompts(
        data.tasks[: options.limit],
        file,
        setup,
        n=options.n,
        seed=options.seed,
        checkpoints=options.checkpoints,
        scorers=stages_of(options.scorer),
    )
    search = Search(
        n=options.n,
        checkpoints=options.checkpoints,
        max_tokens=setup.max_tokens,
        scorer=options.scorer,
        measure=options.measure,
        prefill_weight=options.prefill_weight,
    )
    say(err, f"Replaying policies on {len(prompts)} prompts; of many it takes a minute.")
    try:
        proposal = propose(prompts, options.target, search)
    except TargetError as error:
        raise EvalError(f"{error}.") from error
    return _Found(proposal, data, setup, prompts, options)


def _show(found: _Found, out: Console) -> None:
    proposal, options, setup = found.proposal, found.options, found.setup
    say(
        out,
        f"{found.data.name}: {len(found.prompts)} prompts, {options.n} candidates each of {setup.model} at temperature "
        f"{setup.temperature:g}, at most {setup.max_tokens} tokens.",
    )
    say(
        out,
        f"{proposal.tried} policies by {options.scorer.value}; {proposal.chosen_on} prompts chose for "
        f"{_asked(proposal)}, the figures are of the other {proposal.told_on}.\n",
    )
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == _COLUMNS[0] else "right", no_wrap=True)
    for name, expected in (
        ("one sample", proposal.one_sample),
        (f"best of {options.n}", proposal.best_of_n),
        ("proposed", proposal.expected),
    ):
        table.add_row(name, *_cells(expected))
    out.print(table)
    more = f"gain: of what best of {options.n} has more {options.measure.value} than one sample."
    say(out, f"{more} Intervals: {LEVEL:.0%} of resamples of the prompts.\n", style="dim")
    missed = _missed(proposal)
    if missed is not None:
        say(out, missed, style="yellow")
    say(out, f"Policy: {to_text(policy_fields(proposal.policy))}")


def _asked(proposal: Proposal) -> str:
    target = proposal.target
    if target.aim is Aim.GAIN:
        return f"{target.amount:.0%} of the gain"
    return f"at most {target.amount:g} {_BUDGETS[target.aim]}"


def _missed(proposal: Proposal) -> str | None:
    """Return what to say where the half that tells does not bear out what the half that chooses promised."""
    expected, target = proposal.expected, proposal.target
    if target.aim is Aim.GAIN:
        if expected.share.value >= target.amount:
            return None
        share = "none" if math.isnan(expected.share.value) else f"{expected.share.value:.0%}"
        return f"On the prompts that did not choose it is {share}, less than {_asked(proposal)}."
    spent = expected.drawn if target.aim is Aim.SAMPLES else expected.tokens
    if spent.value <= target.amount:
        return None
    return f"On the prompts that did not choose it is {spent.value:.4g}, more than {_asked(proposal)}."


def _cells(expected: Expected) -> tuple[str, ...]:
    return (
        _interval(expected.drawn, decimals=2, bounds=1),
        _interval(expected.tokens),
        _interval(expected.passed, scale=100, decimals=1),
        _interval(expected.reward, scale=100, decimals=1),
        _interval(expected.share, scale=100),
    )


def _interval(estimate: Estimate, *, scale: float = 1, decimals: int = 0, bounds: int = 0) -> str:
    if math.isnan(estimate.value):
        return "-"
    value = f"{scale * estimate.value:z.{decimals}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{scale * estimate.low:z.{bounds}f}, {scale * estimate.high:z.{bounds}f}]"


def _plain(expected: Expected) -> dict[str, Any]:
    return {name: _finite(estimate) for name, estimate in asdict(expected).items()}


def _finite(estimate: dict[str, float | None]) -> dict[str, float | None]:
    return {
        name: None if value is None or not math.isfinite(value) else round(value, 6) for name, value in estimate.items()
    }


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
