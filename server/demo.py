"""`preamble demo`: walks through the product with the real openai client, and says only what it has seen happen."""

from __future__ import annotations

import time
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

import openai
from openai.types.chat import ChatCompletion
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from adaptive.evaluation.tasks import Task
from adaptive.policy import ScorerName
from server.demo_judgement import Judgement, judgement_of
from server.demo_proxy import DemoError, started_proxy
from server.demo_tasks import Asked, short_tasks, tried
from server.interrupts import sigterm_interrupts
from server.settings import Settings
from server.terminal import say, shown_progress

# A pair that a model of 135 million parameters visibly follows at temperature 0.
PRINCIPLE: Final = "Answer in one short sentence."
QUESTION: Final = "Give me three tips for sleeping well."
_MAX_TOKENS: Final = 120
_HEADER: Final = "x-preamble-constitution"
_SHOWN_SERIES: Final = (
    "preamble_requests_total",
    "preamble_constitution_requests_total",
    "preamble_constitution_lookups_total",
    "preamble_request_duration_seconds",
    "preamble_time_to_first_token_seconds",
    "preamble_overhead_seconds",
    "preamble_candidates_per_request",
    "preamble_candidate_tokens_total",
    "preamble_prune_decisions_total",
)
# Long enough for several blocks of the prefix cache, whatever their size up to 128 tokens.
_STORY: Final = "Write a short story about a lighthouse keeper."
_STORY_TOKENS: Final = 160
# Early enough that something is left to save of a reply this short.
_BEST_OF_4: Final = {"checkpoints": [{"tokens": 32, "keep": 0.25}]}
_UP_TO_8: Final[dict[str, Any]] = {"n_max": 8, "threshold": 0.9, "checkpoints": []}
_TASK_TOKENS: Final = 96
_TASK_TEMPERATURE: Final = 0.8  # that of the answers by which the scores were calibrated
_LONG_QUESTION: Final = "Please repeat the last word of this list. " + "sun moon star tree river stone cloud " * 30


Series = dict[tuple[str, tuple[str, ...]], float]
"""Values by the name of the series and its label values."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one chat. `constitution`: the response header; `cached_tokens`: None where usage is silent."""

    text: str
    constitution: str | None
    prompt_tokens: int
    cached_tokens: int | None

    @property
    def words(self) -> int:
        """Number of words in the text."""
        return len(self.text.split())


def run_demo(settings: Settings, console: Console) -> None:
    """Start everything, show the product, stop everything. Raises `DemoError` with the reason when something breaks."""
    started = time.monotonic()
    engine = f"in front of {settings.upstream}" if settings.upstream else "with the embedded vLLM"
    say(console, f"Starting `preamble serve` {engine} ...")
    with sigterm_interrupts(), started_proxy(settings) as proxy:
        with shown_progress(console) as progress:
            base_url = proxy.await_ready(progress)
        say(console, f"The proxy is ready at {base_url} after {time.monotonic() - started:.0f} s.")
        try:
            Demo(base_url, console).walk()
        except openai.OpenAIError as error:
            raise DemoError(f"A request of the demo failed: {error}") from error
        say(console, "\nStopping ...")
    say(console, f"Everything is stopped, after {time.monotonic() - started:.0f} s in all. Nothing is left behind.")
    say(console, "Now yours: `make serve`, or `preamble serve --upstream URL` in front of your own vLLM.")


class Demo:
    """The walk, against a proxy on loopback: there the header x-preamble-user says who is calling."""

    def __init__(self, base_url: str, console: Console) -> None:
        self._base_url = base_url
        self._console = console
        self._model = ""
        self._judgement = Judgement("", calibrated=False)

    def walk(self) -> None:
        """Show everything, in the order in which one would try it."""
        metrics_before = self._metrics()
        ada, grace = self._client("ada"), self._client("grace")
        self._models(ada)
        plain = self._chat_without(ada)
        tag = self._register(ada)
        self._chat_with(ada, plain, tag)
        self._preview(ada)
        self._opt_out(ada, plain)
        self._sampled(grace)
        self._adaptive(grace)
        self._tenants(ada, grace)
        self._changes(metrics_before, self._metrics())

    def _models(self, client: openai.OpenAI) -> None:
        self._heading("The models, asked for with the openai client")
        models = list(client.models.list())
        self._check(models, "the upstream serves no model")
        self._model = models[0].id
        self._judgement = judgement_of(self._model, (models[0].model_extra or {}).get("root"))
        self._say(", ".join(model.id for model in models))

    def _chat_without(self, client: openai.OpenAI) -> Answer:
        self._heading("A chat, before ada has a constitution")
        answer = self._ask(client, QUESTION)
        self._show(answer)
        self._check(answer.constitution is None, "an answer names a constitution although there is none")
        return answer

    def _register(self, client: openai.OpenAI) -> str:
        self._heading("ada registers a constitution: PUT /v1/constitution")
        version = client.put("/constitution", cast_to=object, body={"principles": [PRINCIPLE]})
        self._check(isinstance(version, dict), "PUT /v1/constitution did not answer with an object")
        tag = f"{version['id']}@{version['version']}"  # type: ignore[index]  # checked in the line above
        self._say(f"1. {PRINCIPLE}")
        self._say(f"It is stored as {tag}.")
        return tag

    def _chat_with(self, client: openai.OpenAI, plain: Answer, tag: str) -> None:
        self._heading("The same chat, with it")
        answer = self._ask(client, QUESTION)
        self._show(answer)
        self._check(answer.constitution == tag, f"the answer names {answer.constitution} and not {tag}")
        self._say(f"{_HEADER}: {answer.constitution}")
        if answer.words < plain.words:
            self._say(f"{answer.words} words instead of {plain.words}.")
        else:
            self._say(f"{answer.words} words after {plain.words}: this model did not follow it here.")
        self._heading("And streamed")
        chunks = self._stream(client)
        streamed = "".join(chunks)
        same = "the same text" if streamed == answer.text else "a text that differs from the one above"
        self._say(f"{len(chunks)} pieces, {same}.")

    def _preview(self, client: openai.OpenAI) -> None:
        self._heading("What the model was sent: POST /v1/constitution/preview")
        messages = [{"role": "user", "content": QUESTION}]
        preview: Any = client.post("/constitution/preview", cast_to=object, body={"messages": messages})
        carrier = preview["system_message"]
        self._console.print(Panel(Text(carrier["content"]), title=f"{carrier['role']} message", title_align="left"))
        tokens = preview["token_count"]
        self._say(f"{tokens} tokens by the model's own tokenizer." if tokens is not None else "Tokens: unknown.")

    def _opt_out(self, client: openai.OpenAI, plain: Answer) -> None:
        self._heading(f"One request without it: {_HEADER}: none")
        answer = self._ask(client, QUESTION, {_HEADER: "none"})
        self._check(answer.constitution is None, "a request that opted out was answered with a constitution")
        same_prompt = answer.prompt_tokens == plain.prompt_tokens
        self._check(same_prompt, "a request that opted out has another prompt than the one before the constitution")
        same = "the same answer as" if answer.text == plain.text else "another answer than"
        self._say(f"{answer.prompt_tokens} prompt tokens and {same} before the constitution.")

    def _sampled(self, client: openai.OpenAI) -> None:
        self._heading("The best of four, by the model's own judgement")
        self._say(self._judgement.text)
        told = self._sample(client, "best-of-4", _BEST_OF_4)
        self._say(f"{told['candidates']['pruned']} of {told['candidates']['drawn']} stopped early.")
        self._cost(told)

    def _adaptive(self, client: openai.OpenAI) -> None:
        self._heading("As many as are needed: adaptive, up to eight")
        threshold = _UP_TO_8["threshold"]
        probability = "" if self._judgement.calibrated else ", which without calibration is no probability"
        by = " by the read-out" if self._judgement.scorer is ScorerName.READ_OUT else ""
        self._say(f"Sampling stops at the first reply with a score of {threshold} or more{by}{probability}.")
        found = tried(short_tasks(), lambda task: self._try(client, task))
        table = Table("a task of each kind", "drawn", "one sample", "returned", "tokens", box=None)
        for each in found:
            passes = ["passes" if passed else "fails" for passed in (each.first, each.returned)]
            table.add_row(each.family, str(each.drawn), *passes, str(each.spent))
        self._console.print(table)
        first, returned = (sum(each) for each in zip(*((task.first, task.returned) for task in found), strict=True))
        self._say(f"{returned} of {len(found)} pass; {first} would with one sample.")
        drawn = sum(each.drawn for each in found) / len(found)
        self._say(f"{drawn:.1f} candidates were drawn on average, of eight that there might have been.")
        spent, saved = sum(each.spent for each in found), sum(each.saved for each in found)
        change = f"{abs(saved):.0f} {'fewer' if saved >= 0 else 'more'}"
        self._say(f"{spent} tokens, those of scoring included: {change} than best of eight would take (estimated).")

    def _try(self, client: openai.OpenAI, task: Task) -> Asked:
        completion = client.chat.completions.create(
            model=f"{self._model}:adaptive",
            messages=[dict(message) for message in task.messages],  # type: ignore[misc]  # OpenAI's, from a data set
            max_tokens=_TASK_TOKENS,
            temperature=_TASK_TEMPERATURE,
            seed=1,
            extra_body={"preamble": _UP_TO_8 | {"scorer": self._judgement.scorer}},
        )
        told: Any = (completion.model_extra or {}).get("preamble")
        self._check(told, "a sampled answer does not say what became of its candidates")
        trace: Any = client.get(f"/traces/{completion.id}", cast_to=object)
        return completion.choices[0].message.content or "", told, trace

    def _sample(self, client: openai.OpenAI, alias: str, policy: dict[str, Any]) -> Any:
        """Show what became of the candidates of one request; return its `preamble` object."""
        completion = client.chat.completions.create(
            model=f"{self._model}:{alias}",
            messages=[{"role": "user", "content": _STORY}],
            max_tokens=_STORY_TOKENS,
            seed=1,
            extra_body={"preamble": policy},
        )
        told: Any = (completion.model_extra or {}).get("preamble")
        self._check(told, "a sampled answer does not say what became of its candidates")
        trace: Any = client.get(f"/traces/{completion.id}", cast_to=object)
        self._say(f"model: {self._model}:{alias}")
        self._say(f"> {_STORY}")
        table = Table("candidate", "score at 32", "at its end", "tokens", "fate", "it begins", box=None)
        for each in trace["candidates"]:
            scores = {score["final"]: f"{score['value']:.3f}" for score in each["scores"]}
            begins = Text(" ".join(each["text"].split()), overflow="ellipsis", no_wrap=True, style="cyan")
            shown = (scores.get(False, ""), scores.get(True, ""), str(each["tokens"]), each["fate"])
            table.add_row(str(each["index"]), *shown, begins)
        self._console.print(table)
        if told["degradations"]:
            # What stands in the table is then not what was said of the scores.
            self._say(f"The scores are of {told['scorer']}: {told['degradations'][0]['cause']}.")
        return told

    def _cost(self, told: Any) -> None:
        """Say what a request cost, scoring included, beside full best-of-4."""
        tokens = told["tokens"]
        self._say(f"{tokens['generated']} tokens generated, {tokens['scored']} computed for scores.")
        change = f"{abs(tokens['saved']):.0f} {'fewer' if tokens['saved'] >= 0 else 'more'}"
        about = " (estimated)" if tokens["saved_is_estimated"] else ""
        self._say(f"That is {change} than all four to their end would have been{about}.")

    def _tenants(self, ada: openai.OpenAI, grace: openai.OpenAI) -> None:
        self._heading("Two tenants send the same prompt; neither sees the other's cached prefix")
        opt_out = {_HEADER: "none"}
        asked = [("ada, first", ada), ("ada, again", ada), ("grace, first", grace)]
        answers = [(who, self._ask(client, _LONG_QUESTION, opt_out, max_tokens=1)) for who, client in asked]
        if any(answer.cached_tokens is None for _, answer in answers):
            self._say("This upstream does not say what came from its cache (--enable-prompt-tokens-details).")
            return
        table = Table("who", "prompt tokens", "of these from the cache", box=None)
        for who, answer in answers:
            table.add_row(who, str(answer.prompt_tokens), str(answer.cached_tokens))
        self._console.print(table)
        _, again, other = (answer.cached_tokens for _, answer in answers)
        self._check(other == 0, "grace's first request was answered from the cache of ada")
        if not again:
            self._say("Nothing was reused at all: prefix caching seems to be off in this upstream.")

    def _changes(self, before: Series, after: Series) -> None:
        self._heading("The metrics that moved: GET /metrics, before and after")
        moved = {series: value - before.get(series, 0.0) for series, value in after.items()}
        table = Table(Column("series", no_wrap=True), "labels", "before", "after", box=None, pad_edge=False)
        for (name, labels), change in moved.items():
            if change and not name.endswith("_sum"):
                value = after[name, labels]
                table.add_row(name, escape(" ".join(labels)), f"{value - change:g}", f"{value:g}")
        self._check(table.row_count, "no metric moved")
        self._console.print(table)
        chats = ("chat_completions",)
        count = moved.get(("preamble_request_duration_seconds_count", chats), 0.0)
        self._check(count, "the chats were not counted")
        total_s = moved.get(("preamble_request_duration_seconds_sum", chats), 0.0)
        own_s = moved.get(("preamble_overhead_seconds_sum", chats), 0.0)
        self._say(
            f"A chat took {total_s / count * 1e3:.1f} ms on average, {own_s / count * 1e3:.2f} ms of it the proxy's."
        )

    # What the steps are made of.

    def _client(self, user: str) -> openai.OpenAI:
        headers = {"x-preamble-user": user}
        return openai.OpenAI(base_url=f"{self._base_url}/v1", api_key="none", default_headers=headers, max_retries=0)

    def _ask(
        self,
        client: openai.OpenAI,
        question: str,
        headers: dict[str, str] | None = None,
        max_tokens: int = _MAX_TOKENS,
    ) -> Answer:
        raw = client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=max_tokens,
            extra_headers=headers,
        )
        completion: ChatCompletion = raw.parse()
        usage = completion.usage
        details = usage.prompt_tokens_details if usage is not None else None
        return Answer(
            text=completion.choices[0].message.content or "",
            constitution=raw.headers.get(_HEADER),
            prompt_tokens=usage.prompt_tokens if usage is not None else 0,
            cached_tokens=details.cached_tokens if details is not None else None,
        )

    def _stream(self, client: openai.OpenAI) -> list[str]:
        """Print a streamed answer as it comes and return its pieces."""
        pieces = []
        stream = client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=_MAX_TOKENS,
            stream=True,
        )
        for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                pieces.append(piece)
                self._console.print(Text(piece, style="cyan"), end="", soft_wrap=True)
        self._console.print()
        return pieces

    def _metrics(self) -> Series:
        """Return the series to show: counters as they are, histograms as their count and sum."""
        url = f"{self._base_url}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 -- http, our own proxy's
            text = response.read().decode()
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.removesuffix("_count").removesuffix("_sum") in _SHOWN_SERIES
        }

    def _heading(self, title: str) -> None:
        self._console.print()
        self._console.print(Rule(Text(title, style="bold"), align="left"))

    def _say(self, text: str) -> None:
        say(self._console, text)

    def _show(self, answer: Answer) -> None:
        self._say(f"> {QUESTION}")
        say(self._console, answer.text, style="cyan")

    def _check(self, holds: object, otherwise: str) -> None:
        if not holds:
            raise DemoError(f"This should not happen: {otherwise}. `preamble doctor` may tell why.")
