"""Locust scenarios for a proxy that runs: people who chat, with and without streaming, and now and then edit.

Two tenants share the load. Each virtual user belongs to one of them, chats in its name, and checks on every answer
that the constitution which was used is its own tenant's. With `--sampled-share` some of them ask for adaptive
best-of-N, and check the report that comes with each answer. Edits race on purpose: `If-Match` lets one win, and a 412
is counted under a name of its own, not as a failure.

Besides locust's own figures there are two of a streamed chat: `first token` in milliseconds, and `tokens per second`,
where locust's millisecond columns hold tokens per second.

    locust -f loadtests/locustfile.py --headless --users 20 --spawn-rate 5 --run-time 60s
"""

from __future__ import annotations

import itertools
import random
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
from locust import HttpUser, between, events, task

if TYPE_CHECKING:
    from collections.abc import Iterator

TENANTS = ("loadtest-a", "loadtest-b")
QUESTIONS = (
    "What should I check before I buy a used bicycle?",
    "Explain in two sentences why the sky is blue.",
    "Write a polite message that moves our meeting from Tuesday to Thursday.",
    "Which is larger, 9.11 or 9.9? Say why.",
    "Give me three ideas for a rainy Sunday with two children.",
)
PRINCIPLES = (
    "Answer in at most three sentences.",
    "Say plainly when something is uncertain.",
    "Use metric units.",
    "Give the reason together with the recommendation.",
)
_TIMEOUT_S = 120.0
_ADAPTIVE_MOST = 8  # candidates of the alias `<model>:adaptive`, the policy's default
_OK, _CREATED, _NOT_FOUND, _PRECONDITION_FAILED = 200, 201, 404, 412
_turn = itertools.count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust's types are not followed
def add_options(parser: Any) -> None:
    """Add the options of these scenarios to locust's own."""
    parser.add_argument(
        "--api-keys",
        env_var="LOADTEST_API_KEYS",
        default="",
        is_secret=True,
        help="Two API keys with a comma between, one for each tenant. Without: the header x-preamble-user names them.",
    )
    parser.add_argument("--chat-model", default="", help="Model to chat with; without it the first that is listed.")
    parser.add_argument("--max-tokens", type=int, default=64, help="Longest answer, in tokens.")
    parser.add_argument(
        "--sampled-share", type=float, default=0.0, help="Share of the users, 0 to 1, who ask for adaptive best-of-N."
    )


@events.init.add_listener  # type: ignore[untyped-decorator]  # the same
def check_options(environment: Any, **_: Any) -> None:
    """Refuse to start with a wrong number of keys. Raises `SystemExit`."""
    if len(api_keys(environment.parsed_options)) not in {0, len(TENANTS)}:
        raise SystemExit(f"--api-keys needs {len(TENANTS)} keys with a comma between, one for each tenant")
    if not 0.0 <= environment.parsed_options.sampled_share <= 1.0:
        raise SystemExit("--sampled-share is a share of the users: give a number from 0 to 1")


def api_keys(options: Any) -> list[str]:
    """Return the keys that the options name, one for each tenant, or none."""
    return [key.strip() for key in options.api_keys.split(",") if key.strip()]


def is_sampled(user: int, share: float) -> bool:
    """Tell whether the `user`-th user, from 0, samples: spread evenly, so that of any number about that share does."""
    return int((user + 1) * share) > int(user * share)


def wrong_report(told: Any, tokens: int) -> str:
    """Return what is wrong with a sampled answer's `preamble`, nothing if all is well. tokens: those of its usage."""
    if not isinstance(told, dict):
        return "a sampled answer without a report"
    if not 1 <= told["candidates"]["drawn"] <= _ADAPTIVE_MOST:
        return f"{told['candidates']['drawn']} candidates drawn"
    if told["candidates"]["pruned"] >= told["candidates"]["drawn"]:
        return "every candidate pruned"
    if len(told["choices"]) != 1 or told["choices"][0]["tokens"] != tokens:
        return "the report does not count the tokens of the choice"
    if told["tokens"]["generated"] < tokens or not told["stop_reason"]:
        return "the report does not say what was spent, and why it stopped"
    return ""


class Person(HttpUser):  # type: ignore[misc]  # locust's types are not followed
    """Somebody of one tenant who asks, reads, thinks, and sometimes edits the tenant's constitution."""

    host = "http://127.0.0.1:8080"
    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        """Take a tenant, see that it has a constitution, and find the model."""
        options = self.environment.parsed_options
        turn = next(_turn)
        number = turn % len(TENANTS)
        keys = api_keys(options)
        self.client.headers.update(
            {"authorization": f"Bearer {keys[number]}"} if keys else {"x-preamble-user": TENANTS[number]}
        )
        self.constitution_id = ""
        self.max_tokens = options.max_tokens
        self.sampled = is_sampled(turn // len(TENANTS), options.sampled_share)
        self.chat_model = (options.chat_model or self._first_model()) + (":adaptive" if self.sampled else "")
        self.edit_constitution()

    def _first_model(self) -> str:
        return str(self.client.get("/v1/models", timeout=_TIMEOUT_S).json()["data"][0]["id"])

    @task(6)  # type: ignore[untyped-decorator]  # locust's types are not followed
    def chat(self) -> None:
        """Ask and wait for the whole answer."""
        with self._post(stream=False, name="chat, adaptive" if self.sampled else "chat") as response:
            if not self._is_good(response):
                return
            answer = response.json()
            if not answer.get("choices"):
                response.failure("an answer without choices")
            elif self.sampled:
                self._check_report(response, answer.get("preamble"), answer["usage"]["completion_tokens"])

    @task(6)  # type: ignore[untyped-decorator]  # locust's types are not followed
    def chat_streamed(self) -> None:
        """Ask and read the answer as it comes; report the first token and the speed after it."""
        began = perf_counter()
        name = "chat, adaptive, streamed" if self.sampled else "chat, streamed"
        with self._post(stream=True, name=name) as response:
            if not self._is_good(response):
                return
            first, tokens, done, told = 0.0, 0, False, None
            for event in sse_data(response):
                if event == b"[DONE]":
                    done = True
                    break
                chunk = orjson.loads(event)
                told = chunk.get("preamble") or told
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
                if not first and any(choice["delta"].get("content") for choice in chunk["choices"]):
                    first = perf_counter()
            ended = perf_counter()
            response.request_meta["response_time"] = (ended - began) * 1e3  # requests stops its clock at the headers
            if not done:
                response.failure("a stream that ended without [DONE]")
                return
            if self.sampled:
                self._check_report(response, told, tokens)
                return  # its tokens come in bursts: speed and first token are another matter, told in the report
        if first:
            self._report("first token", (first - began) * 1e3)
            if tokens > 1 and ended > first:
                self._report("tokens per second", (tokens - 1) / (ended - first))

    @task(1)  # type: ignore[untyped-decorator]  # locust's types are not followed
    def edit_constitution(self) -> None:
        """Read the tenant's constitution and write another version, unless somebody else was faster."""
        with self.client.get("/v1/constitution", name="read constitution", catch_response=True) as response:
            etag = response.headers.get("etag")
            if response.status_code == _NOT_FOUND:
                response.success()
        texts = random.sample(PRINCIPLES, k=random.randint(1, len(PRINCIPLES)))
        condition = {"if-match": etag} if etag else {}
        with self.client.put(
            "/v1/constitution",
            json={"principles": [{"text": text} for text in texts]},
            headers=condition,
            name="edit constitution",
            catch_response=True,
        ) as response:
            if response.status_code == _PRECONDITION_FAILED:
                response.request_meta["name"] = "edit constitution, somebody was faster (412)"
                response.success()
            elif response.status_code in {_OK, _CREATED}:
                self.constitution_id = response.json()["id"]

    def _post(self, *, stream: bool, name: str) -> Any:
        body: dict[str, Any] = {
            "model": self.chat_model,
            "messages": [{"role": "user", "content": random.choice(QUESTIONS)}],
            "max_tokens": self.max_tokens,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self.client.post(
            "/v1/chat/completions", json=body, stream=stream, name=name, catch_response=True, timeout=_TIMEOUT_S
        )

    def _is_good(self, response: Any) -> bool:
        """Tell whether the answer is one, and made with the constitution of this user's own tenant."""
        if response.status_code != _OK:
            response.failure(f"status {response.status_code}")
            return False
        used = response.headers.get("x-preamble-constitution", "")
        if self.constitution_id and used.partition("@")[0] != self.constitution_id:
            response.failure("answered with another constitution than the tenant's")
            return False
        return True

    def _check_report(self, response: Any, told: Any, tokens: int) -> None:
        wrong = wrong_report(told, tokens)
        if wrong:
            response.failure(wrong)
        elif told["first_token_ms"] is not None:
            self._report("first token, adaptive", told["first_token_ms"])

    def _report(self, name: str, value: float) -> None:
        self.environment.events.request.fire(
            request_type="SSE", name=name, response_time=value, response_length=0, exception=None, context={}
        )


def sse_data(response: Any) -> Iterator[bytes]:
    """Yield the data of each event of a streamed answer as it arrives; vLLM sends one line of it per event."""
    for line in response.iter_lines():
        if line.startswith(b"data: "):
            yield line[len(b"data: ") :]
