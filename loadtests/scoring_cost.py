"""What self-evaluation costs the engine: time and prompt tokens of scores, with vLLM's prefix cache on and off.

Starts the embedded vLLM once for each setting (or uses `--upstream`, as it is), and lets the sampling loop answer the
same prompts with the same seeds with and without scores, one right after the other in alternating order. Candidates
have a fixed length, nobody is pruned: what differs is the scoring alone. Each run has a cache salt of its own, so that
none finds what another computed. The exit status is 0 when it was measured, 2 when it could not be.

    python -m loadtests.scoring_cost
    python -m loadtests.scoring_cost --prompts 4 --blocks 32 --blocks 128
    UPSTREAM_API_KEY=... python -m loadtests.scoring_cost --upstream http://127.0.0.1:8000
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import signal
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import orjson
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from adaptive.best_of_n import BestOfN
from adaptive.clock import LoopClock
from adaptive.engine import EngineError
from adaptive.policy import Checkpoint, Mode, Policy
from adaptive.run import Request
from adaptive.selection import First, HighestScore
from loadtests import report
from loadtests.comparison import Interval
from loadtests.rounds import INTERRUPTED, TABLE_WIDTH, UNABLE, interrupt, with_progress
from loadtests.scoring_runs import Costs, Run, costs
from loadtests.targets import PRINCIPLES
from server.engine import EmbeddedEngine
from server.engine import EngineError as EngineNotStarted
from server.probe import Scoring, UpstreamProfile, probe
from server.self_evaluation_tokens import SelfEvaluationTokens
from server.settings import load_settings
from server.upstream import Timeouts, UpstreamClient
from server.vllm_engine import ChatRequest, ChatSelfEvaluation, VllmEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

QUESTIONS: Final = (
    "What should I check before I buy a used bicycle?",
    "Explain why the sky is blue.",
    "Write a polite message that moves our meeting from Tuesday to Thursday.",
    "Which is larger, 9.11 or 9.9? Say why.",
    "Give me three ideas for a rainy Sunday with two children.",
    "How do I keep basil alive on a windowsill?",
    "What is the difference between a virus and a bacterium?",
    "Suggest a name for a small bakery, and say what it stands for.",
    "How can I learn to swim as an adult?",
    "Summarise what a central bank does.",
    "What should be in a first-aid kit for a hike?",
    "Describe the taste of a lemon to somebody who has never had one.",
)
_LIMIT_S: Final = 600.0
# Never reached; but with a deadline the best so far may be asked for, so checkpoints are scored that prune nobody.
_DEADLINE_MS: Final = 3_600_000
_COMPUTED: Final = re.compile(
    rb'^vllm:prompt_tokens_by_source_total\{[^}]*source="local_compute"[^}]*\} (\S+)$', re.MULTILINE
)


class Unable(Exception):
    """It could not be measured. The message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Tokens are generated ones; those of the checkpoints are below the candidates'."""

    prompts: int = len(QUESTIONS)
    candidates: int = 4
    tokens: int = 128
    checkpoints: tuple[int, ...] = (32, 64, 96)

    def policy(self, *, scored: bool) -> Policy:
        """Return a policy that draws all candidates and prunes nobody."""
        places = tuple(Checkpoint(tokens, 1.0) for tokens in self.checkpoints) if scored else ()
        return Policy(mode=Mode.BEST_OF_N, n_max=self.candidates, checkpoints=places, deadline_ms=_DEADLINE_MS)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running vLLM. `name` is what it is called in messages."""

    name: str
    url: str
    api_key: str | None


class Measuring:
    """Answers prompts on one upstream, with and without scores."""

    def __init__(self, client: UpstreamClient, profile: UpstreamProfile, plan: Plan) -> None:
        self._client = client
        self._profile = profile
        self._plan = plan
        self._tokens = SelfEvaluationTokens(client, upstream_now=lambda: profile)

    async def run(self, prompt: int, *, scored: bool) -> Run:
        """Answer one prompt. Raises `EngineError`, and `Unable` when it was to be scored and was not."""
        plan = self._plan
        salt = secrets.token_hex(16)
        model = self._profile.models[0]
        messages = [
            {"role": "system", "content": "\n".join(PRINCIPLES)},
            {"role": "user", "content": QUESTIONS[prompt % len(QUESTIONS)]},
        ]
        body = {"model": model.name, "messages": messages, "cache_salt": salt, "ignore_eos": True}
        engine = VllmEngine(
            self._client,
            ChatRequest(body, (), f"scoring-{salt[:8]}", max_tokens=plan.tokens, own_temperature=True),
            scoring=self._profile.scoring or Scoring.LOGPROB_TOKEN_IDS,
            max_model_len=model.max_model_len,
        )
        run = BestOfN(
            Request((), plan.tokens, temperature=1.0, seed=1000 + prompt),
            plan.policy(scored=scored),
            engine=engine,
            scorers=(ChatSelfEvaluation(engine, self._tokens),),
            clock=LoopClock(),
            selector=HighestScore() if scored else First(),
        )
        before = await self._computed()
        outcome = await run.run()
        after = await self._computed()
        if outcome.degradations:
            raise Unable(f"scoring failed: {outcome.degradations[0].cause}. `preamble doctor` says what is missing.")
        computed = None if before is None or after is None else after - before
        return Run.of(prompt, outcome, len(engine.prompt), computed)

    async def _computed(self) -> float | None:
        """Return vLLM's count of prompt tokens that it computed; None where it has none."""
        text = await (await self._client.request("GET", "/metrics")).read()
        found = _COMPUTED.findall(text)
        return sum(map(float, found)) if found else None


def measure(upstream: Upstream, plan: Plan, console: Console) -> Costs:
    """Return what scores cost that upstream. Raises `Unable`."""
    with asyncio.Runner() as runner:
        client = UpstreamClient(
            upstream.url, api_key=upstream.api_key, timeouts=Timeouts(5, _LIMIT_S, _LIMIT_S, _LIMIT_S)
        )
        try:
            profile = runner.run(probe(client))
            if not profile.models:
                raise Unable(
                    f"{upstream.url} does not list a model. Is it a vLLM, and its API key in UPSTREAM_API_KEY?"
                )
            measuring = Measuring(client, profile, plan)
            for scored in (False, True):  # the first of each kind is slower
                runner.run(measuring.run(0, scored=scored))
            steps = _steps(runner, measuring, plan.prompts)
            runs = with_progress(
                steps, 2 * plan.prompts, console, lambda run: f"{upstream.name}: prompt {run.prompt + 1}"
            )
        except EngineError as error:
            raise Unable(f"{upstream.url}: {error}") from error
        finally:
            runner.run(client.aclose())
    return costs(runs, prefix_caching=profile.prefix_caching, block_size=profile.block_size)


def _steps(runner: asyncio.Runner, measuring: Measuring, prompts: int) -> Iterator[Run]:
    for prompt in range(prompts):
        for scored in (False, True) if prompt % 2 else (True, False):
            yield runner.run(measuring.run(prompt, scored=scored))


@contextlib.contextmanager
def started(*, prefix_caching: bool, block_size: int, notes: Console) -> Iterator[Upstream]:
    """Run the embedded vLLM with that cache. Raises `Unable`."""
    caching = "--enable-prefix-caching" if prefix_caching else "--no-enable-prefix-caching"
    name = f"prefix cache {'on' if prefix_caching else 'off'}, blocks of {block_size}"
    with tempfile.TemporaryDirectory(prefix="preamble-scoring-") as folder:
        engine = EmbeddedEngine(
            cache_dir=load_settings().cache_dir,
            data_dir=Path(folder),
            extra_arguments=(caching, "--block-size", str(block_size)),
        )
        notes.print(f"starting vLLM: {name}", highlight=False)
        try:
            with engine.running() as upstream:
                yield Upstream(name, upstream.base_url, upstream.api_key)
        except EngineNotStarted as error:
            raise Unable(str(error)) from error


def all_costs(
    upstream: str | None, api_key: str | None, blocks: Sequence[int], plan: Plan, notes: Console
) -> Iterator[Costs]:
    """Measure the upstream that is given, or the embedded vLLM with the cache on and off. Raises `Unable`."""
    if upstream is not None:
        yield measure(Upstream("upstream", upstream.rstrip("/").removesuffix("/v1"), api_key), plan, notes)
        return
    for prefix_caching, block_size in [(True, blocks[0]), (False, blocks[0]), *((True, size) for size in blocks[1:])]:
        with started(prefix_caching=prefix_caching, block_size=block_size, notes=notes) as engine:
            found = measure(engine, plan, notes)
        yield found


def main(
    *,
    upstream: Annotated[
        str | None, typer.Option(help="A running vLLM; without it the embedded one is started.")
    ] = None,
    upstream_api_key: Annotated[str | None, typer.Option(envvar="UPSTREAM_API_KEY", help="Its API key.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, each answered with and without scores.")] = 12,
    candidates: Annotated[int, typer.Option(min=2, max=64, help="Candidates of each.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each candidate.")] = 128,
    checkpoints: Annotated[
        list[int], typer.Option("--checkpoint", help="Scored there, in tokens; may be repeated.")
    ] = [32, 64, 96],  # noqa: B006  # typer's way
    blocks: Annotated[list[int], typer.Option(help="Block sizes of the prefix cache; may be repeated.")] = [32],  # noqa: B006  # the same
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure what self-evaluation costs vLLM, with its prefix cache on and off."""
    notes = Console(stderr=True)
    signal.signal(signal.SIGTERM, interrupt)
    plan = Plan(prompts, candidates, tokens, tuple(sorted({each for each in checkpoints if 0 < each < tokens})))
    found: list[Costs] = []
    status = 0
    where = report.environment(with_nginx=False)
    try:
        for each in all_costs(upstream, upstream_api_key, blocks, plan, notes):
            found += [each]
    except (Unable, ValueError) as error:
        notes.print(f"[bold red]scoring_cost:[/] {error}", highlight=False, soft_wrap=True)
        status = UNABLE
    except KeyboardInterrupt:
        notes.print("scoring_cost: interrupted; everything that was started has been stopped")
        status = INTERRUPTED
    _tell(found, where, plan, as_json=as_json)  # what was measured until then too: an engine takes a minute to start
    if status:
        raise typer.Exit(status)


def _tell(found: Sequence[Costs], where: report.Environment, plan: Plan, *, as_json: bool) -> None:
    if not found:
        return
    if as_json:
        plain = {"environment": asdict(where), "plan": asdict(plan), "costs": [asdict(each) for each in found]}
        print(orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    report.show_environment(console, where)
    show(console, found, plan)


def show(console: Console, found: Sequence[Costs], plan: Plan) -> None:
    """Print a column for each setting of the cache."""
    places = ", ".join(map(str, plan.checkpoints))
    what = f"{plan.prompts} prompts, {plan.candidates} candidates of {plan.tokens} tokens"
    title = f"{what}, scored at {places} and at their end"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for each in found:
        cache = {True: "on", False: "off", None: "unknown"}[each.prefix_caching]
        table.add_column(f"prefix cache {cache},\nblocks of {each.block_size or '?'}", justify="right")
    rows = {
        "request-seconds spent scoring": [f"{_interval(each.share, percent=True)}" for each in found],
        "time with scores / without": [_interval(each.extra_time) for each in found],
        "a scoring call, ms": [f"{each.call_ms:.0f}" for each in found],
        "scores in a call": [f"{each.scores / each.calls:.1f}" for each in found],
        "tokens of a scored sequence, without the question": [f"{each.sequence_tokens:.0f}" for each in found],
        "tokens computed for it, by vLLM's counter": [
            "-" if each.computed_tokens is None else f"{each.computed_tokens:.0f}" for each in found
        ],
        "tokens computed for it, by usage": [f"{each.told_tokens:.0f}" for each in found],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


def _interval(value: Interval, *, percent: bool = False) -> str:
    if percent:
        return f"{value.median:.1%} ({value.low:.1%} to {value.high:.1%})"
    return f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})"


if __name__ == "__main__":
    typer.run(main)
