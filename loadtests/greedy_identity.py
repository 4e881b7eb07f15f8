"""Do two vLLMs say the same? Greedy replies to the same prompts, token by token; differences are printed as JSON.

Made for the embedded model with and without its trained self-evaluation, whose new rows must not change what it says:

    PREAMBLE_EMBEDDED_SELF_EVALUATION=false preamble engine    # and, elsewhere: preamble engine
    FIRST_API_KEY=... SECOND_API_KEY=... python -m loadtests.greedy_identity --first URL --second URL

Prompts go one at a time, to both: batched differently, a kernel may round differently. Where two replies part, the
margin says how near the first's two likeliest tokens were, in nats: 0 is a tie of bfloat16, which rounding decides.
The exit status is 0 when all replies are the same, 1 when some differ, 2 when it could not be found out.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import httpx
import orjson
import typer
from rich.console import Console

from adaptive.evaluation.tasks import TaskError, load
from loadtests import report
from loadtests.rounds import INTERRUPTED, MISSED, UNABLE, interrupt, with_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adaptive.evaluation.tasks import Task

_LIMIT_S: Final = 600.0
_CONTEXT: Final = 60
"""Characters of each reply that are shown from where it parts."""


class Unable(Exception):
    """It could not be found out. The message says why."""


@dataclass(frozen=True, slots=True)
class Said:
    """A greedy reply. margins: log-probability of each token less that of the second likeliest, in nats."""

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two replies to a prompt part. place: how many tokens they share. margin: None where the first had ended."""

    id: str
    place: int
    margin: float | None
    first: str
    second: str


class Vllm:
    """A running vLLM. Raises `Unable` when it does not list a model."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        models = self._json("GET", "/v1/models").get("data") or []
        if not models:
            raise Unable(f"{client.base_url} does not list a model.")
        self.model: str = models[0]["id"]
        self.root: str | None = models[0].get("root")

    def say(self, messages: Sequence[object], max_tokens: int) -> Said:
        """Return the greedy reply. Raises `Unable`."""
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        body |= {"return_token_ids": True, "logprobs": True, "top_logprobs": 2}
        try:
            choice = self._json("POST", "/v1/chat/completions", body)["choices"][0]
            entries = choice["logprobs"]["content"]
            margins = tuple(float(entry["logprob"]) - min(_logprobs(entry)) for entry in entries)
            return Said(tuple(choice["token_ids"]), tuple(entry["token"] for entry in entries), margins)
        except (KeyError, IndexError, TypeError) as error:
            raise Unable(
                f"{self._client.base_url} gives no token ids with a chat ({error!r}). Is it a vLLM?"
            ) from error

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=body)
            answer.raise_for_status()
            value: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unable(f"{self._client.base_url}{path}: {error}") from error
        return value


def difference(name: str, first: Said, second: Said) -> Difference | None:
    """Return where two replies to the prompt of that name part, None where they do not."""
    if first.token_ids == second.token_ids:
        return None
    pairs = zip(first.token_ids, second.token_ids, strict=False)
    shorter = min(len(first.token_ids), len(second.token_ids))
    place = next((place for place, (one, other) in enumerate(pairs) if one != other), shorter)
    margin = first.margins[place] if place < len(first.margins) else None
    texts = ("".join(each.texts[place:])[:_CONTEXT] for each in (first, second))
    return Difference(name, place, margin, *texts)


def chosen(names: Sequence[str], count: int) -> dict[str, Task]:
    """Return that many prompts, `<data set>/<id>` each, as evenly from the sets as they last. Raises `TaskError`."""
    sets = [load(name) for name in names]
    longest = max(len(each.tasks) for each in sets)
    turns = ((each, place) for place in range(longest) for each in sets if place < len(each.tasks))
    found = ((f"{each.name}/{each.tasks[place].id}", each.tasks[place]) for each, place in turns)
    return dict(itertools.islice(found, count))


def compared(first: Vllm, second: Vllm, tasks: Mapping[str, Task], max_tokens: int) -> Iterator[Difference | None]:
    """Yield, for each prompt in order, where the two part. Raises `Unable`."""
    for name, task in tasks.items():
        yield difference(name, first.say(task.messages, max_tokens), second.say(task.messages, max_tokens))


def _logprobs(entry: Any) -> list[float]:
    return [float(each["logprob"]) for each in entry["top_logprobs"][:2]] or [float(entry["logprob"])]


def main(
    *,
    first: Annotated[str, typer.Option(help="Base URL of a running vLLM.")],
    second: Annotated[str, typer.Option(help="Base URL of the other.")],
    first_api_key: Annotated[str, typer.Option(envvar="FIRST_API_KEY", help="API key of the first.")] = "",
    second_api_key: Annotated[str, typer.Option(envvar="SECOND_API_KEY", help="API key of the second.")] = "",
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 128,
    data: Annotated[list[str], typer.Option(help="Data set or JSONL file, as of `preamble eval`; may be repeated.")] = [  # noqa: B006  # typer's way
        "ifeval",
        "gsm8k",
    ],
) -> None:
    """Compare the greedy replies of two vLLMs, and print the differences as JSON."""
    notes = Console(stderr=True)
    signal.signal(signal.SIGTERM, interrupt)
    where = report.environment(with_nginx=False)
    try:
        with contextlib.ExitStack() as stack:
            served = [
                Vllm(
                    stack.enter_context(
                        httpx.Client(
                            base_url=url.rstrip("/").removesuffix("/v1"),
                            headers={"authorization": f"Bearer {key}"} if key else {},
                            timeout=_LIMIT_S,
                        )
                    )
                )
                for url, key in ((first, first_api_key), (second, second_api_key))
            ]
            tasks = chosen(data, prompts)
            steps = compared(served[0], served[1], tasks, max_tokens)
            found = with_progress(
                steps, len(tasks), notes, lambda each: "same" if each is None else f"{each.id} differs"
            )
    except (Unable, TaskError) as error:
        notes.print(f"[bold red]greedy_identity:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(UNABLE) from error
    except KeyboardInterrupt:
        notes.print("greedy_identity: interrupted")
        raise typer.Exit(INTERRUPTED) from None
    differences = [each for each in found if each is not None]
    told = {
        "format": 1,
        "environment": asdict(where),
        "models": [{"name": each.model, "root": each.root} for each in served],
        "data": data,
        "max_tokens": max_tokens,
        "prompts": len(found),
        "same": len(found) - len(differences),
        "differences": [asdict(each) for each in differences],
    }
    print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    if differences:
        raise typer.Exit(MISSED)


if __name__ == "__main__":
    typer.run(main)
