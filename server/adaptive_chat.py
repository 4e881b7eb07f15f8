"""Adaptive best-of-N for chat completions: from a composed request to the answer of the best candidate.

`ChatSampling` lives as long as the worker and decides which requests are sampled; `ChatRun` is one of them. The
decisions about candidates are `adaptive.best_of_n`'s; here is what surrounds them: the engine over the upstream, the
answer in vLLM's shape, the trace, the metrics.
"""

from __future__ import annotations

import contextlib
import http
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from adaptive.best_of_n import BestOfN
from adaptive.clock import LoopClock
from adaptive.engine import EngineError
from adaptive.limits import Ceiling, LoadShedding
from adaptive.policy import Mode, ScorerName, SelectorName
from adaptive.run import Outcome, Request
from adaptive.scoring import GroupConfidenceScorer, MeanLogProbabilityScorer, ReadOutScorer, Scorer, StagedScorer
from adaptive.seeds import SEED_BITS
from adaptive.selection import First, HighestScore, Majority, RewardModel, Selector
from adaptive.stream import streamed
from server.chat_answer import Wanted, completion, head_of, usage_of, whole_choice
from server.chat_stream import ChatStream
from server.errors import PreambleError, UpstreamBroken, UpstreamError, UpstreamUnavailable
from server.exploration import Answered, Explorations
from server.load_watch import LoadWatch
from server.policy import BODY_FIELD, LISTED_ALIASES, PolicyFields
from server.probe import Scoring, UpstreamProfile
from server.proxy import DROPPED_RESPONSE_HEADERS, Body
from server.reward import Conversation, RewardUpstream
from server.sampling_metrics import SamplingMetrics
from server.sampling_plan import PassThrough, Plan, plan
from server.sampling_report import HEADER, Out, header_value, report
from server.self_evaluation_tokens import SelfEvaluationTokens
from server.traces import TraceWriter
from server.vllm_engine import ChatRequest, ChatSelfEvaluation, Upstream, VllmEngine

# Where neither the client nor the upstream's profile bounds a reply.
_NO_LIMIT: Final = 1 << 31
_OURS_TO_SET: Final = frozenset({"n", "stream", "stream_options", "return_token_ids"})
_PASSED_HEADERS: Final = frozenset({b"traceparent", b"tracestate", b"user-agent", b"x-session-id"})
# What a chat's prompt depends on.
_RENDERED: Final = (
    "model",
    "messages",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
)


@dataclass(frozen=True, slots=True)
class Services:
    """What runs need of the worker they run in. keep_alive_s: seconds between SSE comments while nothing is settled."""

    upstream: Upstream
    profile: Callable[[], UpstreamProfile | None]
    suspect: Callable[[], None]
    tokens: SelfEvaluationTokens
    lacks_read_out: Callable[[str | None], bool]
    ceiling: Ceiling
    shedding: LoadShedding
    load: LoadWatch
    traces: TraceWriter
    metrics: SamplingMetrics
    keep_alive_s: float
    explorations: Explorations
    reward: RewardUpstream | None = None


class ChatSampling:
    """Decides for each chat request whether it is sampled."""

    def __init__(
        self, services: Services, default: PolicyFields, policy_of: Callable[[str], PolicyFields | None]
    ) -> None:
        """`default`: the server's policy. `policy_of`: a user's own, from memory; it may raise `StoreUnavailable`."""
        self._services = services
        self._default = default
        self._policy_of = policy_of
        self._always = default.said().get("mode", Mode.OFF) is not Mode.OFF

    def prepare(
        self, body: Body, header: bytes | None, user: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> ChatRun | PassThrough | None:
        """Return the run for a composed body, or why it is passed through; None if nobody has asked for sampling.

        Takes our own fields out of the body. headers: what passes on; the request id among them is unique. Raises
        `BadRequest`, `StoreUnavailable`.
        """
        own = self._policy_of(user)
        model = body.get("model")
        aliased = isinstance(model, str) and ":" in model
        if not (self._always or aliased or own is not None or header is not None or BODY_FIELD in body):
            return None
        profile = self._services.profile()
        served = () if profile is None else profile.model_names
        asked = header is not None or body.get(BODY_FIELD) is not None
        text = None if header is None else header.decode("latin-1")
        planned = plan(
            body,
            text,
            self._default,
            served,
            own,
            self._services.lacks_read_out,
            reward_model=self._services.reward is not None,
        )
        if planned.reason is not None:
            if planned.reason is PassThrough.OFF and not asked and not self._always:
                return None  # a model that has a colon in its name
            self._services.metrics.passed_through.labels(planned.reason.value).inc()
            return planned.reason
        return ChatRun(self._services, planned, body, user, headers)

    def list_aliases(self, models: bytes) -> bytes:
        """Return the answer of `/v1/models` with an entry for every alias, unchanged if it is no such answer."""
        try:
            value = orjson.loads(models)
            rows = list(value["data"])
            rows += [
                {**row, "id": f"{row['id']}:{alias}", "root": row.get("root"), "parent": row["id"]}
                for row in value["data"]
                for alias in LISTED_ALIASES
            ]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return models
        return orjson.dumps({**value, "data": rows})


class ChatRun:
    """One sampled chat request. took_s: how long the run took, once it is over."""

    def __init__(
        self,
        services: Services,
        planned: Plan,
        body: dict[str, Any],
        user: str,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> None:
        self._services = services
        self._plan = planned
        self._user = user
        self._wanted = Wanted.by(body)
        self._stream = body.get("stream") is True
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        profile = services.profile()
        self._engine = VllmEngine(
            services.upstream,
            ChatRequest(
                body={name: value for name, value in body.items() if name not in _OURS_TO_SET},
                headers=tuple(each for each in headers if each[0] in _PASSED_HEADERS),
                upstream_id=dict(headers)[b"x-request-id"].decode(),
                max_tokens=planned.max_tokens,
                own_temperature=planned.temperature is not None,
            ),
            scoring=(None if profile is None else profile.scoring) or Scoring.LOGPROB_TOKEN_IDS,
            max_model_len=_context_tokens(profile, body.get("model")),
            # For an answer that a deadline cuts before the upstream has said anything.
            head={"created": int(time.time()), "model": body.get("model")},
        )
        self.took_s = 0.0

    async def serve(self, out: Out) -> None:
        """Answer the request. Raises `PreambleError` as long as nothing has been sent."""
        run = await self._run()
        chat = ChatStream(out, self._engine, self._id, self._wanted)
        outcome: Outcome | None = None
        try:
            with self._services.load.sampling():
                if self._stream:
                    async with streamed(run, quiet_s=self._services.keep_alive_s) as events:
                        outcome = await chat.relay(events)
                else:
                    outcome = await run.run()
        except EngineError as error:
            await self._fail(error, out, begun=chat.begun)
            return
        finally:
            trace = run.trace()
            self.took_s = trace.took_s
            self._services.metrics.count(trace, outcome, chat.first_token_s)
        plain = outcome.trace.to_plain(with_text=True) | {"id": self._id, "prompt_tokens": len(self._engine.prompt)}
        await self._services.traces.keep(self._id, self._user, plain)
        told = report(outcome, chat.first_token_s)
        if self._stream:
            await chat.finish(outcome, told, self._usage_of(outcome))
        else:
            body = orjson.dumps(self._completion(outcome, told))
            length = (b"content-length", b"%d" % len(body))
            await out.begin(200, ((b"content-type", b"application/json"), length, (HEADER, header_value(told))))
            await out.end(body)
        self._services.explorations.offer(
            Answered(self._id, self._user, run.request, outcome, self._engine, self._scorer, plain)
        )

    async def _run(self) -> BestOfN:
        services, policy = self._services, self._plan.policy
        most = self._engine.most_tokens = await self._most_tokens()
        temperature = self._plan.temperature
        seed = self._plan.seed
        request = Request(
            prompt=(),  # the upstream renders it, and says what it was with the first chunk
            max_tokens=most,
            temperature=1.0 if temperature is None else temperature,
            seed=secrets.randbits(SEED_BITS) if seed is None else seed,
            choices=self._plan.choices,
            stream=self._stream,
        )
        return BestOfN(
            request,
            policy,
            engine=self._engine,
            scorers=await self._scorers(),
            clock=LoopClock(),
            selector=self._selector(),
            slots=services.ceiling.slots(self._user),
            allowed=lambda n_max: services.shedding.allowed(n_max, services.load.waiting()),
        )

    async def _scorers(self) -> tuple[Scorer, ...]:
        """Return the policy's scorer, and the one that takes over when it fails."""
        first, last = await self._scorer(self._engine), MeanLogProbabilityScorer()
        return (last,) if first.name == last.name else (first, last)

    async def _scorer(self, engine: VllmEngine) -> Scorer:
        """Return the policy's scorer on that engine."""
        match self._plan.policy.scorer:
            case ScorerName.SELF_EVALUATION:
                return ChatSelfEvaluation(engine, self._services.tokens)
            case ScorerName.READ_OUT | ScorerName.STAGED as name:
                tokens, model = self._services.tokens, engine.request.model
                labels = tokens.read_out(model)
                if labels is not None:
                    read_out = ReadOutScorer(labels, tokens.read_out_calibration(model))
                    staged = name is ScorerName.STAGED
                    return StagedScorer(read_out, ChatSelfEvaluation(engine, tokens)) if staged else read_out
                # The plan refuses it for every model that is served: so what is served is not known, or this is not.
                if self._services.profile() is None:
                    raise UpstreamUnavailable("The upstream has not said yet which models it serves. Try again.")
                return MeanLogProbabilityScorer()  # never heard: the upstream says itself that it has no such model
            case ScorerName.GROUP_CONFIDENCE:
                return GroupConfidenceScorer()
            case ScorerName.MEAN_LOG_PROBABILITY:
                return MeanLogProbabilityScorer()

    def _selector(self) -> Selector:
        policy = self._plan.policy
        match policy.selector:
            case SelectorName.MAJORITY:
                return Majority(policy.answer_of())
            case SelectorName.FIRST:
                return First()
            case SelectorName.REWARD_MODEL if self._services.reward is not None:
                request = self._engine.request
                salt = request.body.get("cache_salt")
                told = Conversation(request.body["messages"], request.upstream_id, salt)
                return RewardModel(self._services.reward.of(told))
            case _:
                return HighestScore()

    async def _most_tokens(self) -> int:
        """Return the longest that a reply can become: the client's limit, or what the context has room for.

        The prompt's length is only asked for where it matters: where a budget may become a candidate's limit, which
        the upstream refuses if it does not fit.
        """
        room = self._engine.max_model_len
        if self._plan.max_tokens is not None or room is None:
            return self._plan.max_tokens or _NO_LIMIT
        if self._plan.policy.token_budget is None:
            return room
        body = self._engine.request.body
        payload = {name: body[name] for name in _RENDERED if name in body}
        with contextlib.suppress(UpstreamError):
            status, value = await self._services.upstream.request_json("POST", "/tokenize", payload)
            count = value.get("count") if status == http.HTTPStatus.OK and isinstance(value, dict) else None
            return max(1, room - count) if isinstance(count, int) else room
        return room

    def _completion(self, outcome: Outcome, told: dict[str, Any]) -> dict[str, Any]:
        choices = [whole_choice(record, index, self._wanted) for index, record in enumerate(outcome.choices)]
        prompt = self._engine.prompt if self._wanted.token_ids else None
        return completion(head_of(self._id, self._engine.head), choices, self._usage_of(outcome), prompt, told)

    def _usage_of(self, outcome: Outcome) -> dict[str, Any]:
        """Return the usage, with the details that the upstream gave for the first choice."""
        upstream = self._engine.usages.get(outcome.choices[0].index, {})
        about_prompt, about_reply = (upstream.get(f"{part}_tokens_details") for part in ("prompt", "completion"))
        about_reply = about_reply if len(outcome.choices) == 1 else None
        details: dict[str, Any] = {"prompt_tokens_details": about_prompt}
        if not self._stream:
            # vLLM has these in whole answers only.
            if isinstance(about_prompt, dict):
                details["prompt_tokens_details"] = {**about_prompt, "multimodal_tokens": None}
            details["completion_tokens_details"] = about_reply
        elif about_reply is not None:
            details["completion_tokens_details"] = about_reply
        tokens = sum(record.tokens for record in outcome.choices)
        return usage_of(len(self._engine.prompt), tokens, **details)

    async def _fail(self, error: EngineError, out: Out, *, begun: bool) -> None:
        """Say why there is no answer: in the upstream's own words, where it had any."""
        refusal, broken = self._engine.refusal, self._engine.broken
        if isinstance(broken, UpstreamUnavailable):
            self._services.suspect()
        if refusal is not None and not begun:
            kept = [each for each in refusal.headers if each[0] not in DROPPED_RESPONSE_HEADERS]
            await out.begin(refusal.status, kept)
            await out.end(refusal.body)
            return
        failure: PreambleError = broken or UpstreamBroken(f"There is no answer: {error}. Try again.")
        if not begun:
            raise failure from error
        await out.end(b"data: " + orjson.dumps(failure.body()) + b"\n\n")


def _context_tokens(profile: UpstreamProfile | None, model: object) -> int | None:
    """Return the context of that model in tokens; of the only one there is where none is named."""
    models = () if profile is None else profile.models
    named = [each.max_model_len for each in models if each.name == model or (model is None and len(models) == 1)]
    return named[0] if named else None
