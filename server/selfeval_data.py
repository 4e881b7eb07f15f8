"""`preamble selfeval data`: answers of the model, rewarded and compared with each other, as examples to train on."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

import typer
import uvloop
from rich.console import Console

from adaptive.clock import LoopClock
from adaptive.engine import EngineError
from adaptive.evaluation.tasks import TaskError
from adaptive.evaluation.verifiers import Verdict
from adaptive.splits import Shares
from adaptive.training import parquet
from adaptive.training.examples import FORMAT, Answer, Group, JsonlWriter, cuts, win_or_tie_shares
from adaptive.training.parquet import ParquetMissing
from adaptive.training.summary import Summary, as_markdown
from constitutions.compose import Placement
from server.errors import UpstreamUnavailable
from server.eval_errors import EvalError
from server.eval_progress import Shown
from server.eval_sampling import fingerprint_of, in_parallel, persistently, root_of, served_by
from server.eval_upstream import client_of, upstream_for
from server.interrupts import sigterm_interrupts
from server.machine import Machine, this_machine
from server.reward import reward_upstream
from server.selfeval_cache import KeptFile
from server.selfeval_local_reward import LocalRewardModel
from server.selfeval_prompts import (
    Prompt,
    check_ids,
    mix,
    read_constitutions,
    read_outcomes,
    read_preferences,
    read_tasks,
)
from server.selfeval_rewards import (
    JudgeReward,
    LocalReward,
    PreferenceReward,
    RewardSource,
    UpstreamReward,
    VerifierReward,
)
from server.selfeval_sampling import AnswerSource, ChatSampler, DrawnGroup, LoggedAnswers, Setup, digest
from server.settings import Settings
from server.terminal import say
from server.upstream import Timeouts, UpstreamClient

# So many in a row that nothing comes of are no accident.
_LOST_IN_A_ROW: Final = 20
_SHOWN_REASONS: Final = 5
_PLACEMENTS: Final = {"system": Placement.SYSTEM, "first_user": Placement.FIRST_USER}


class Reward(StrEnum):
    """What says how good an answer is: `selfeval_rewards.py`."""

    VERIFIER = "verifier"
    REWARD_MODEL = "reward_model"
    JUDGE = "judge"
    PREFERENCES = "preferences"


class Format(StrEnum):
    """Of the data file."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    tasks: names or paths. limit: prompts of each of these, of the outcomes and of the preferences; None for all. cuts:
    random ones per answer, besides the whole. judge_key: a secret.
    """

    out: Path
    tasks: tuple[str, ...]
    outcomes: tuple[Path, ...]
    preferences: tuple[Path, ...]
    limit: int | None
    constitutions: Path | None
    constitution_share: float
    reward: Reward
    reward_directory: Path | None
    judge_upstream: str | None
    judge_model: str | None
    judge_key: str | None
    judge_max_tokens: int
    n: int
    temperature: float
    max_tokens: int
    seed: int
    concurrency: int
    cuts: int
    shares: Shares
    format: Format
    command: Sequence[str]
    as_json: bool


@dataclass(frozen=True, slots=True)
class Card:
    """Everything that one has to know to believe a data file. lost: prompts without answers, and why, by prompt."""

    setup: Setup
    source: Mapping[str, Any]
    options: Options
    prompts: int
    with_constitution: int
    lost: Mapping[str, str]
    made_at: str
    machine: Machine
    file: str
    summary: Summary

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        options = self.options
        return {
            "format": FORMAT,
            "file": self.file,
            "made_at": self.made_at,
            "command": shlex.join(options.command),
            "model": {"name": self.setup.model, "root": self.setup.root, "fingerprint": self.setup.fingerprint},
            "sampling": {
                "answers_per_prompt": self.setup.n,
                "temperature": self.setup.temperature,
                "max_tokens": self.setup.max_tokens,
                "seed": options.seed,
                "random_cuts_per_answer": options.cuts,
            },
            "reward": dict(self.source),
            "sources": {
                "tasks": list(options.tasks),
                "outcomes": list(map(str, options.outcomes)),
                "preferences": list(map(str, options.preferences)),
                "limit": options.limit,
            },
            "constitutions": {
                "file": None if options.constitutions is None else str(options.constitutions),
                "share_asked_for": options.constitution_share if options.constitutions is not None else 0.0,
                "share": self.with_constitution / self.prompts,
            },
            "splits": asdict(options.shares),
            "prompts_asked": self.prompts,
            "prompts_lost": len(self.lost),
            "lost_because": dict(list(self.lost.items())[:_SHOWN_REASONS]),
            "counts": self.summary.plain(),
            "machine": asdict(self.machine),
        }

    def markdown(self) -> str:
        """Return it for people."""
        plain, setup, options, machine = self.plain(), self.setup, self.options, self.machine
        mixed = plain["constitutions"]
        counts = self.summary.all
        sampled = (
            "logged, not sampled"
            if setup.n is None
            else f"{setup.n} answers per prompt at temperature {setup.temperature:g}, at most {setup.max_tokens} tokens"
        )
        gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
        facts = [
            ("model", f"{setup.model} ({setup.root or 'root not told'}, {setup.fingerprint or 'no fingerprint'})"),
            ("answers", f"{sampled}; seed {options.seed}"),
            ("examples", f"each answer whole, and at up to {options.cuts} random lengths"),
            ("reward", json.dumps(plain["reward"])),
            ("prompts from", ", ".join(map(str, (*options.tasks, *options.outcomes, *options.preferences)))),
            (
                "constitutions",
                f"{mixed['file'] or 'none mixed in'}; {mixed['share']:.1%} of the prompts have one",
            ),
            ("splits", ", ".join(f"{name} {share:g}" for name, share in plain["splits"].items())),
            ("prompts", f"{self.prompts} asked, {counts.prompts} in the file, {len(self.lost)} lost"),
            ("cannot teach", f"{counts.prompts - counts.teaching} prompts, whose answers are all as good"),
            ("made", f"{self.made_at} on {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB{gpus}"),
            ("by", f"Preamble {machine.preamble}, commit {machine.commit or 'not known'}"),
            ("command", f"`{plain['command']}`"),
        ]
        lines = [f"# {self.file}", "", "Examples for training self-evaluation: what P(win or tie) should be.", ""]
        lines += [f"- {name}: {value}" for name, value in facts]
        return "\n".join(lines) + "\n\n" + as_markdown(self.summary)


def run_data(settings: Settings, options: Options, *, out: Console, err: Console) -> None:
    """Sample what is missing, reward it and write the data file and its card. Raises `EvalError`, `EngineError`."""
    try:
        if options.format is Format.PARQUET:
            parquet.library()
        prompts = _prompts(options)
    except (TaskError, ParquetMissing) as error:
        raise EvalError(str(error)) from error
    source = _source(settings, options)
    with sigterm_interrupts(), upstream_for(settings, err) as upstream:
        card = _made(upstream, options, prompts, source, err)
    if options.as_json:
        typer.echo(json.dumps(card.plain()))
        return
    counts = card.summary.all
    say(
        out,
        f"{options.out / card.file}: {counts.prompts} prompts, {counts.answers} answers, {counts.examples} examples",
    )
    say(out, f"{counts.teaching} prompts can teach: their answers are not all as good. DATA_CARD.md tells the rest.")


def _prompts(options: Options) -> list[Prompt]:
    """Return what is to be answered. Raises `TaskError`."""
    verified = options.reward is Reward.VERIFIER
    if options.reward is Reward.PREFERENCES:
        if options.tasks or options.outcomes or options.constitutions or not options.preferences:
            raise TaskError(
                "--reward preferences takes its prompts and answers from --preferences, and from nothing else."
            )
        prompts = [p for path in options.preferences for p in read_preferences(path, options.shares, options.limit)]
        check_ids(prompts)
        return prompts
    if options.preferences:
        raise TaskError("--preferences is for --reward preferences.")
    if options.outcomes and verified:
        raise TaskError("--outcomes has no verifiers; give --reward reward_model or judge.")
    if not options.tasks and not options.outcomes:
        raise TaskError("There are no prompts: give --tasks, --outcomes or --preferences.")
    prompts = [
        prompt
        for name in options.tasks
        for prompt in read_tasks(name, options.shares, options.limit, verified=verified)
    ]
    prompts += [p for path in options.outcomes for p in read_outcomes(path, options.shares, options.limit)]
    check_ids(prompts)
    constitutions = [] if options.constitutions is None else read_constitutions(options.constitutions)
    return mix(prompts, constitutions, options.constitution_share, options.seed)


def _source(settings: Settings, options: Options) -> RewardSource:
    """Return what says how good an answer is. Raises `EvalError`."""
    match options.reward:
        case Reward.VERIFIER:
            return VerifierReward()
        case Reward.PREFERENCES:
            return PreferenceReward()
        case Reward.REWARD_MODEL if options.reward_directory is not None:
            directory = options.reward_directory.resolve()
            return LocalReward(LocalRewardModel(directory), source=str(directory))
        case Reward.REWARD_MODEL:
            served = reward_upstream(settings)
            if served is None or settings.reward_upstream is None:
                raise EvalError(
                    "--reward reward_model needs a model: --reward-directory, or --reward-upstream for one that a "
                    "vLLM serves."
                )
            return UpstreamReward(served, url=settings.reward_upstream, model=settings.reward_model)
        case Reward.JUDGE:
            if options.judge_upstream is None or options.judge_model is None:
                raise EvalError("--reward judge needs --judge-upstream and --judge-model.")
            timeout_s = settings.total_timeout_s
            client = UpstreamClient(
                options.judge_upstream.rstrip("/").removesuffix("/v1"),
                api_key=options.judge_key,
                max_connections=max(16, options.n * options.concurrency),
                timeouts=Timeouts(settings.connect_timeout_s, timeout_s, timeout_s, timeout_s),
            )
            return JudgeReward(
                client,
                url=options.judge_upstream,
                model=options.judge_model,
                max_tokens=options.judge_max_tokens,
            )


def _made(settings: Settings, options: Options, prompts: Sequence[Prompt], source: RewardSource, err: Console) -> Card:
    """Sample, reward and write. What is there stays there, whatever happens."""
    kept = Kept(options.out)
    for file in (kept.answers, kept.rewards):
        if file.ignored:
            say(err, f"Ignored: {file.ignored} lines of {file.path} that cannot be read (a killed run tears its last).")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, kept.answers, kept.rewards:
        try:
            return runner.run(_make(settings, options, prompts, source, kept, err))
        except (KeyboardInterrupt, EvalError):
            if len(kept.answers):
                say(
                    err,
                    f"The answers to {len(kept.answers)} prompts are kept in {kept.answers.path}; "
                    "the same command goes on from there.",
                )
            raise


async def _written(maker: Maker, options: Options, prompts: Sequence[Prompt], source: RewardSource) -> Card:
    """Write the data file and its card; an older one stays until the new one is whole. Raises `EvalError`."""
    path = options.out / f"examples.{options.format.value}"
    part = path.with_name(path.name + ".part")
    summary = Summary()
    with parquet.Writer(part) if options.format is Format.PARQUET else JsonlWriter(part) as file:
        async with aclosing(maker.groups(prompts, options.cuts)) as groups:
            async for group in groups:
                file.add(group.to_plain())
                summary.add(group)
    if not summary.all.prompts:
        part.unlink()
        raise EvalError(f"No prompt was answered; {path} is not written. {next(iter(maker.lost.values()), '')}".strip())
    part.replace(path)
    card = Card(
        setup=maker.setup,
        source=source.identity or {"reward": source.name},
        options=options,
        prompts=len(prompts),
        with_constitution=sum(prompt.constitution is not None for prompt in prompts),
        lost=dict(maker.lost),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=this_machine(),
        file=path.name,
        summary=summary,
    )
    (options.out / "data_card.json").write_text(json.dumps(card.plain(), indent=1) + "\n", encoding="utf-8")
    (options.out / "DATA_CARD.md").write_text(card.markdown(), encoding="utf-8")
    return card


class Kept:
    """What earlier runs have left in a directory: answers, and rewards that cost something."""

    def __init__(self, directory: Path) -> None:
        self.answers = KeptFile(directory / "answers.jsonl")
        self.rewards = KeptFile(directory / "rewards.jsonl")


async def _make(
    settings: Settings, options: Options, prompts: Sequence[Prompt], source: RewardSource, kept: Kept, err: Console
) -> Card:
    # Every prompt may have its answers asked for, and be tokenized.
    client = client_of(settings, max(16, 2 * options.concurrency))
    try:
        answers = await answer_source(client, settings, options)
        maker = Maker(answers, source, kept)
        todo = [prompt for prompt in prompts if not maker.has(prompt)]
        if todo:
            say(
                err,
                f"{len(todo)} of {len(prompts)} prompts to go, {options.n if answers.setup.n else 2} answers each, of "
                f"{answers.setup.model}; into {kept.answers.path}",
            )
        with Shown(err, "prompts", len(prompts), len(prompts) - len(todo)) as shown:
            await maker.make(todo, concurrency=options.concurrency, keep=shown.kept, lose=shown.lost)
        return await _written(maker, options, prompts, source)
    finally:
        await client.aclose()
        await source.aclose()


async def answer_source(client: UpstreamClient, settings: Settings, options: Options) -> AnswerSource:
    """Return where the answers are from. Raises `EvalError`."""
    profile, served = await served_by(client, settings.model)
    placement = _PLACEMENTS.get(settings.system_role, profile.placement)
    logged = options.reward is Reward.PREFERENCES
    setup = Setup(
        model=served.name,
        root=await root_of(client, served.name),
        fingerprint=await fingerprint_of(client, served.name),
        temperature=None if logged else options.temperature,
        max_tokens=None if logged else options.max_tokens,
        n=None if logged else options.n,
    )
    if logged:
        return LoggedAnswers(client, setup, placement=placement)
    return ChatSampler(client, setup, seed=options.seed, placement=placement)


class Maker:
    """Answers and rewards prompts, several at a time; what was had is kept at once. lost: why, by prompt id."""

    def __init__(self, answers: AnswerSource, source: RewardSource, kept: Kept) -> None:
        self._answers = answers
        self._source = source
        self._kept = kept
        self._clock = LoopClock()
        self.lost: dict[str, str] = {}
        self._lost_in_a_row = 0

    @property
    def setup(self) -> Setup:
        """What the answers depend on."""
        return self._answers.setup

    def has(self, prompt: Prompt) -> bool:
        """Return True where answers and rewards are there, or the latter cost nothing."""
        key = self._answers.key(prompt)
        return key in self._kept.answers and (
            self._source.identity is None or self._reward_key(key) in self._kept.rewards
        )

    async def make(
        self, prompts: Sequence[Prompt], *, concurrency: int, keep: Callable[[int], None], lose: Callable[[str], None]
    ) -> None:
        """Answer these; `keep` is given the tokens of each, `lose` why one could not be.

        Raises `EvalError` when the upstream is gone or nothing comes of many in a row. Cancelling it aborts upstream.
        """
        await in_parallel(partial(self._work, keep, lose), prompts, concurrency)

    async def groups(self, prompts: Sequence[Prompt], count: int) -> AsyncGenerator[Group, None]:
        """Yield what was had of these prompts, in their order. count: of random cuts per answer."""
        for prompt in prompts:
            key = self._answers.key(prompt)
            if not self.has(prompt):
                continue
            drawn = DrawnGroup.from_plain(self._kept.answers.get(key))
            if self._source.identity is None:
                rewards = await self._source.rewards(prompt, [answer.text for answer in drawn.answers])
            else:
                rewards = tuple(self._kept.rewards.get(self._reward_key(key))["rewards"])
            yield compared(prompt, drawn, rewards, messages=self._answers.messages(prompt), count=count, key=key)

    async def _work(self, keep: Callable[[int], None], lose: Callable[[str], None], prompt: Prompt) -> None:
        try:
            keep(await self._one(prompt))
        except EngineError as error:
            if isinstance(error.__cause__, UpstreamUnavailable):
                raise EvalError(f"The upstream is gone: {error}") from error
            self.lost[prompt.id] = str(error)
            self._lost_in_a_row += 1
            lose(f"{prompt.id}: {error}")
            if self._lost_in_a_row >= _LOST_IN_A_ROW:
                raise EvalError(f"{self._lost_in_a_row} prompts in a row were lost; the last: {error}") from error
        else:
            self._lost_in_a_row = 0

    async def _one(self, prompt: Prompt) -> int:
        """Return how many tokens were generated. Raises `EngineError`."""
        key = self._answers.key(prompt)
        tokens = 0
        if key in self._kept.answers:
            drawn = DrawnGroup.from_plain(self._kept.answers.get(key))
        else:
            drawn = await persistently(partial(self._answers.answers, prompt), self._clock)
            self._kept.answers.add(key, {"prompt": prompt.id, **drawn.to_plain()})
            tokens = drawn.tokens
        if self._source.identity is not None:
            texts = [answer.text for answer in drawn.answers]
            rewards = await persistently(partial(self._source.rewards, prompt, texts), self._clock)
            self._kept.rewards.add(self._reward_key(key), {"prompt": prompt.id, "rewards": rewards})
        return tokens

    def _reward_key(self, key: str) -> str:
        return digest([key, self._source.identity])


def compared(
    prompt: Prompt,
    drawn: DrawnGroup,
    rewards: Sequence[float],
    *,
    messages: Sequence[Mapping[str, Any]],
    count: int,
    key: str,
) -> Group:
    """Return the group that answers and their rewards make. messages: as they were sent. key: what cuts come from.

    Where a rule can tell whether an answer respects the prompt's constitution, the reward is the mean of both, and an
    answer passes if it does both. Without any rule those pass that beat or tie all others.
    """
    respects = None if prompt.constitution is None else prompt.constitution.respects
    rules = [rule for rule in (prompt.verify, respects) if rule is not None]
    verdicts: list[list[Verdict]] = [[rule(answer.text) for rule in rules] for answer in drawn.answers]
    if respects is not None:
        rewards = [(own + verdict[-1].reward) / 2 for own, verdict in zip(rewards, verdicts, strict=True)]
    shares = win_or_tie_shares(rewards)
    rng = random.Random(key)  # noqa: S311 -- no secret
    answers = [
        Answer(
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            text=answer.text,
            finish_reason=answer.finish_reason,
            reward=float(reward),
            passed=all(each.passed for each in verdict) if rules else share == 1.0,
            win_or_tie=share,
            cuts=cuts(len(answer.token_ids), count, rng),
        )
        for answer, reward, verdict, share in zip(drawn.answers, rewards, verdicts, shares, strict=True)
    ]
    return Group(
        id=prompt.id,
        family=prompt.family,
        split=prompt.split,
        messages=tuple(messages),
        constitution=None if prompt.constitution is None else prompt.constitution.id,
        prompt_ids=drawn.prompt_ids,
        answers=tuple(answers),
    )
