"""The request path: every `/v1` route that vLLM answers, as one raw ASGI endpoint.

It is raw ASGI because a framework's routing and request objects cost more than everything done here together
(`python -m loadtests.overhead`). The story of a request is `_Request.serve`, top to bottom:

1. who is calling, 2. their body, 3. their constitution put into it and their cache salt, 4. the upstream,
5. the answer relayed: bytes are passed on as they come, never parsed, 6. counted and logged.

A client that hangs up cancels whatever is going on, in every phase, and thereby closes the upstream request.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter  # the loop's own clock is exact to the millisecond only
from typing import Any, Final, Protocol

import orjson
import structlog

from constitutions.compose import Placement, compose_anthropic_system, compose_instructions, compose_messages
from server.bodies import is_json, json_object, too_large
from server.errors import (
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    PreambleError,
    UpstreamError,
    UpstreamUnavailable,
)
from server.http_protocol import CONNECTION, PreambleHttpProtocol
from server.identity import Identity
from server.logs import AccessLog
from server.new_tokens import NewIds
from server.sampling_plan import PassThrough
from server.sampling_report import HEADER as SAMPLING_HEADER
from server.sampling_report import Out, passed_through
from server.tally import RouteTally, Tally
from server.upstream import UpstreamClient, UpstreamResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Body = dict[str, Any]

_DONE: Final = b"data: [DONE]\n\n"
CLIENT_CLOSED_REQUEST: Final = 499  # nginx's number for a client that hung up; nobody receives it

# What goes on to the upstream. A list of what may pass rather than of what may not: a header that a later vLLM learns
# to obey (X-Vllm-Priority and X-data-parallel-rank are such) must not pass because nobody here knew of it.
FORWARDED_HEADERS: Final = frozenset(
    {
        b"accept",
        b"anthropic-beta",
        b"anthropic-version",
        b"content-type",
        b"endpoint-load-metrics-format",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-session-id",
    }
)
# Hop-by-hop (RFC 9110, 7.6.1), or set by our own server.
DROPPED_RESPONSE_HEADERS: Final = frozenset(
    {
        b"connection",
        b"date",
        b"keep-alive",
        b"proxy-connection",
        b"server",
        b"transfer-encoding",
        b"trailer",
        b"upgrade",
        b"x-request-id",
    }
)
# Body fields with which a client would reach into the scheduler, or into requests that are not its own.
# They pass for an admin.
OPERATOR_FIELDS: Final = ("priority", "request_id", "kv_transfer_params")
# Routes that change the upstream for everybody.
ADMIN_PATHS: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})

# A server between us and vLLM might fold these into a path outside /v1.
_DOUBTFUL_PATH: Final = re.compile(r"//|/\.{1,2}(?:/|$)|\\")
_METHODS: Final = frozenset({"GET", "POST", "DELETE"})
_MAX_REQUEST_ID: Final = 128


def _chat(body: Body, block: str | None, placement: Placement) -> None:
    messages = check_messages(body.get("messages"), "messages")
    if block is not None:
        body["messages"] = compose_messages(messages, block, placement)


def _chat_batch(body: Body, block: str | None, placement: Placement) -> None:
    conversations = body.get("messages")
    if not isinstance(conversations, list) or not conversations:
        raise BadRequest("'messages' must be a non-empty list of conversations.", param="messages")
    checked = [check_messages(messages, f"messages[{index}]") for index, messages in enumerate(conversations)]
    if block is not None:
        body["messages"] = [compose_messages(messages, block, placement) for messages in checked]


def _responses(body: Body, block: str | None, _placement: Placement) -> None:
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise BadRequest("'instructions' must be a string.", param="instructions")
    if block is not None:
        body["instructions"] = compose_instructions(block, instructions)


def _anthropic(body: Body, block: str | None, _placement: Placement) -> None:
    check_messages(body.get("messages"), "messages")
    system = body.get("system")
    if system is not None and not isinstance(system, str | list):
        raise BadRequest("'system' must be a string or a list of text blocks.", param="system")
    if block is not None:
        body["system"] = compose_anthropic_system(block, system)


def check_messages(messages: Any, param: str) -> list[dict[str, Any]]:
    """Return `messages`; raise `BadRequest`, naming the field, unless it is a non-empty list of objects with a role."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"'{param}' must be a non-empty list of messages.", param=param)
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequest(
                f'\'{param}[{index}]\' must be an object such as {{"role": "user", "content": "..."}}.',
                param=f"{param}[{index}]",
            )
        if not isinstance(message.get("role"), str):
            raise BadRequest(
                f"'{param}[{index}].role' must be a string such as \"user\".", param=f"{param}[{index}].role"
            )
    return messages


Compose = Callable[[Body, str | None, Placement], None]


@dataclass(frozen=True, slots=True)
class Route:
    """What is known of one upstream path: the name it has in metrics, and how a constitution gets into its body.

    sampled: adaptive best-of-N may answer it.
    """

    name: str
    compose: Compose | None = None
    sampled: bool = False


ROUTES: Final[dict[str, Route]] = {
    "/v1/chat/completions": Route("chat_completions", _chat, sampled=True),
    "/v1/chat/completions/batch": Route("chat_completions_batch", _chat_batch),
    "/v1/chat/completions/render": Route("render", _chat),
    "/v1/completions": Route("completions"),
    "/v1/responses": Route("responses", _responses),
    "/v1/responses/render": Route("render", _responses),
    "/v1/messages": Route("messages", _anthropic),
    "/v1/messages/count_tokens": Route("messages_count_tokens", _anthropic),
    "/v1/messages/render": Route("render", _anthropic),
    "/v1/embeddings": Route("embeddings"),
    "/v1/models": Route("models"),
}
OTHER_ROUTE: Final = Route("other")


class ConstitutionEntry(Protocol):
    """A user's active constitution, ready to be sent."""

    @property
    def block(self) -> str:
        """The text that goes to the model."""

    @property
    def tag(self) -> str:
        """`<id>@<version>`."""

    @property
    def header(self) -> bytes:
        """The tag as a header's value."""


class Constitutions(Protocol):
    """Where a request finds the constitution that it names."""

    async def active(self, user: str) -> ConstitutionEntry | None:
        """Return the user's active constitution."""

    async def pinned(self, user: str, tag: str) -> ConstitutionEntry:
        """Return a version that the client names; raises `NotFound` or `BadRequest`."""


class Callers(Protocol):
    """Who is calling."""

    async def identify(self, authorization: bytes | None, api_key: bytes | None, user: bytes | None) -> Identity:
        """Return the caller named by these headers; raises `Unauthenticated`, `Forbidden` or `BadRequest`."""

    def with_body_user(self, identity: Identity, value: object) -> Identity:
        """Return the identity when the body's `user` field may name it."""


class UpstreamState(Protocol):
    """What is known of the upstream now."""

    @property
    def placement(self) -> Placement:
        """Where the upstream's chat template takes a constitution."""

    def suspect(self) -> None:
        """Say that the upstream was just found unreachable."""


class SampledRun(Protocol):
    """A request that is answered by adaptive best-of-N. took_s: how long that took, once it is over."""

    took_s: float

    async def serve(self, out: Out) -> None:
        """Answer it. Raises `PreambleError` as long as nothing has been sent."""


class Sampling(Protocol):
    """Adaptive best-of-N, as the request path sees it; `server.adaptive_chat.ChatSampling` is it."""

    def prepare(
        self, body: Body, header: bytes | None, user: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> SampledRun | PassThrough | None:
        """Return the run for a composed body, or why it is passed through; None if nobody has asked for sampling."""

    def list_aliases(self, models: bytes) -> bytes:
        """Return the upstream's list of models with ours in it."""


class ClientDisconnected(Exception):
    """The client hung up while its request was being read."""


class Proxy:
    """The ASGI endpoint. All it works with is passed in."""

    def __init__(
        self,
        *,
        callers: Callers,
        constitutions: Constitutions,
        salt: Callable[[str], str],
        upstream: UpstreamClient,
        upstream_state: UpstreamState,
        tally: Tally,
        access_log: AccessLog | None,
        max_body_bytes: int,
        sampling: Sampling | None = None,
        new_ids: Callable[[str | None], NewIds | None] = lambda _: None,
    ) -> None:
        self.callers = callers
        self.constitutions = constitutions
        self.salt = salt
        self.upstream = upstream
        self.upstream_state = upstream_state
        self.tally = tally
        self.metrics = tally.metrics
        self.access_log = access_log
        self.max_body_bytes = max_body_bytes
        self.sampling = sampling
        self.new_ids = new_ids
        # Unique, not secret: one random draw per process costs less than one per request.
        self._process = secrets.token_hex(6)
        self._serials = itertools.count()

    def next_serial(self) -> str:
        """Return a text that no other request gets, of this process or another."""
        return f"req-{self._process}{next(self._serials):x}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        # A trailing slash would make vLLM answer with a redirect to its own address.
        path: str = scope["path"].rstrip("/")
        await _Request(self, path, scope, receive, send).run()


class _Request:
    """One request on its way: what is known of it so far."""

    __slots__ = (
        "_authorization",
        "_connection",
        "_constitution",
        "_content_type",
        "_declared_bytes",
        "_engine_s",
        "_first_token_s",
        "_forward",
        "_hung_up",
        "_identity",
        "_last_piece",
        "_path",
        "_pin",
        "_policy",
        "_proxy",
        "_receive",
        "_request_bytes",
        "_request_id",
        "_response_bytes",
        "_route",
        "_run",
        "_sampling_note",
        "_scope",
        "_send",
        "_series",
        "_started",
        "_status",
        "_user_header",
        "_x_api_key",
    )

    def __init__(self, proxy: Proxy, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._proxy = proxy
        self._path = path
        self._route = route = ROUTES.get(path, OTHER_ROUTE)
        self._scope = scope
        self._receive = receive
        self._send = send
        self._series: RouteTally = proxy.tally.route(route.name)
        self._first_token_s: float | None = None
        self._connection: PreambleHttpProtocol | None = scope.get(CONNECTION)
        self._started = perf_counter()
        self._engine_s = 0.0
        self._status = 0
        self._request_bytes = 0
        self._response_bytes = 0
        self._hung_up = False
        self._last_piece = b""
        self._identity: Identity | None = None
        self._constitution: ConstitutionEntry | None = None
        self._run: SampledRun | None = None
        self._sampling_note: bytes | None = None
        self._read_headers()

    def _read_headers(self) -> None:  # noqa: C901 -- one flat chain; a table would cost a look-up for every header
        """Sort the headers in one pass: ours, what passes on, and the rest, which is dropped."""
        self._authorization: bytes | None = None
        self._x_api_key: bytes | None = None
        self._user_header: bytes | None = None
        self._pin: bytes | None = None
        self._policy: bytes | None = None
        self._content_type = b""
        self._declared_bytes: int | None = None
        self._forward: list[tuple[bytes, bytes]] = []
        request_id = b""
        for header in self._scope["headers"]:
            name, value = header
            if name in FORWARDED_HEADERS:
                self._forward.append(header)
                if name == b"content-type":
                    self._content_type = value
            elif name == b"authorization":
                self._authorization = value
            elif name == b"x-api-key":
                self._x_api_key = value
            elif name == b"content-length":
                self._declared_bytes = int(value)  # the server's parser has checked it
            elif name == b"x-preamble-user":
                self._user_header = value
            elif name == b"x-preamble-constitution":
                self._pin = value
            elif name == b"x-preamble-policy":
                self._policy = value
            elif name == b"x-request-id":
                request_id = value
        # The upstream aborts two live requests of one id together, so what it gets is never shared by two.
        serial = self._proxy.next_serial()
        given = accepted_request_id(request_id)
        self._request_id = given or serial
        self._forward.append((b"x-request-id", (f"{given}-{serial}" if given else serial).encode()))

    async def run(self) -> None:
        """Serve the request and account for it, whatever happens."""
        self._series.begin()
        try:
            await self.serve()
        except PreambleError as error:
            await self._refuse(error)
        except ClientDisconnected:
            self._count_disconnect("reading")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._hung_up or task is None:
                raise
            task.uncancel()  # it was our own watch that cancelled: the client is gone, this task may end in peace
            # Whoever has `[DONE]` has all: openai's client closes there, and does not wait for the end of the coding.
            if not self._last_piece.endswith(_DONE):
                self._count_disconnect("streaming" if self._status else "waiting")
        except Exception:
            # The boundary of the task: a mistake of ours must become an answer, a log line and a count, not a hang.
            structlog.get_logger(__name__).exception("request_failed", request_id=self._request_id)
            if self._status:
                raise  # the answer has begun; the server closes the connection
            await self._refuse(PreambleError("The proxy failed on this request. It has been logged."))
        finally:
            self._account()

    async def serve(self) -> None:
        """Identify, read, compose, forward, relay."""
        proxy = self._proxy
        self._check_method()
        # 1. Who is calling. Before the body is read: a stranger's 32 MiB are not worth receiving.
        self._identity = await proxy.callers.identify(self._authorization, self._x_api_key, self._user_header)
        if self._path in ADMIN_PATHS and not self._identity.admin:
            raise Forbidden("This path changes the upstream for everybody. Use an admin key.")
        # 2. What they want.
        body = await self._read_body() if self._scope["method"] == "POST" else b""
        self._request_bytes = len(body)
        # 3. Their constitution and their salt.
        stream = False
        if body:
            body, stream = await self._prepare(body)
        elif self._route.compose is not None:
            raise BadRequest("The request has no body. Send a JSON object.", code="invalid_json")
        # 4. The upstream, while watching for the client to hang up.
        stop_watching = self._watch()
        try:
            if self._run is not None:
                await self._serve_sampled(self._run)
                return
            response = await self._forward_to_upstream(body, stream=stream)
            # 5. The answer.
            try:
                await self._relay(response)
            finally:
                response.close()
        finally:
            stop_watching()

    async def _serve_sampled(self, run: SampledRun) -> None:
        try:
            await run.serve(self)
        finally:
            self._engine_s = run.took_s

    def _check_method(self) -> None:
        method = self._scope["method"]
        if self._route is OTHER_ROUTE and _DOUBTFUL_PATH.search(self._path):
            raise NotFound("There is no such path. The routes of vLLM are under /v1.")
        if method not in _METHODS or (method != "POST" and self._route.compose is not None):
            allowed = "POST" if self._route.compose is not None else "GET, POST, DELETE"
            raise MethodNotAllowed(
                f"{method} is not supported on this path. Use {allowed}.", headers=(("allow", allowed),)
            )

    async def _read_body(self) -> bytes:
        limit = self._proxy.max_body_bytes
        if self._declared_bytes is not None and self._declared_bytes > limit:
            raise too_large(limit)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False) and len(body) <= limit:
            return body
        parts = [body]
        size = len(body)
        while message.get("more_body", False):
            if size > limit:
                break
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        if size > limit:
            raise too_large(limit)
        return b"".join(parts)

    async def _prepare(self, raw: bytes) -> tuple[bytes, bool]:
        """Return the body for the upstream, and whether the answer will be streamed.

        A body that is not JSON (audio, say) passes as it is; the routes that take a constitution insist on JSON.
        """
        media_type = self._content_type.decode("latin-1")
        if self._route is OTHER_ROUTE and not is_json(media_type):
            return raw, False
        body = json_object(media_type, raw)
        proxy = self._proxy
        identity = self._identity = proxy.callers.with_body_user(_known(self._identity), body.get("user"))
        compose = self._route.compose
        if compose is not None:
            entry = self._constitution = await self._find_constitution(identity)
            compose(body, None if entry is None else entry.block, proxy.upstream_state.placement)
        if not identity.admin:
            for name in OPERATOR_FIELDS:
                body.pop(name, None)
        # For an admin too: on loopback everybody is one.
        if "logit_bias" in body or "allowed_token_ids" in body or "prompt" in body:
            self._keep_new_ids(body)
        body["cache_salt"] = proxy.salt(identity.tenant)
        if self._route.sampled and proxy.sampling is not None:
            prepared = proxy.sampling.prepare(body, self._policy, identity.user, self._forward)
            if isinstance(prepared, PassThrough):
                self._sampling_note = passed_through(prepared)
            elif prepared is not None:
                self._run = prepared
                return b"", False
        return orjson.dumps(body), body.get("stream") is True

    def _keep_new_ids(self, body: Body) -> None:
        model = body.get("model")
        new_ids = self._proxy.new_ids(model if isinstance(model, str) else None)
        if new_ids is not None:
            new_ids.guard(body)

    async def _find_constitution(self, identity: Identity) -> ConstitutionEntry | None:
        tally = self._proxy.tally
        pin = self._pin
        if pin is None:
            entry = await self._proxy.constitutions.active(identity.user)
        elif pin.strip().lower() == b"none":
            tally.opted_out += 1
            return None
        else:
            entry = await self._proxy.constitutions.pinned(identity.user, pin.decode("latin-1").strip())
        if entry is None:
            tally.without += 1
        else:
            tally.applied += 1
        return entry

    def _watch(self) -> Callable[[], object]:
        """Have this task cancelled, wherever it waits, when the client hangs up; return what ends the watch."""
        task = asyncio.current_task()

        def hang_up() -> None:
            self._hung_up = True
            if task is not None:
                task.cancel()

        connection = self._connection
        if connection is not None:
            connection.on_hang_up(hang_up)
            return partial(connection.on_hang_up, None)
        # A server without such a callback: wait for ASGI's message, which polling would miss behind any middleware.
        return asyncio.create_task(_hang_up_message(self._receive, hang_up)).cancel

    async def _forward_to_upstream(self, body: bytes, *, stream: bool) -> UpstreamResponse:
        scope = self._scope
        path = scope["raw_path"].decode("ascii").rstrip("/")
        if scope["query_string"]:
            path += "?" + scope["query_string"].decode("ascii")
        sent = perf_counter()
        try:
            response = await self._proxy.upstream.request(
                scope["method"], path, headers=self._forward, body=body, stream=stream
            )
        except UpstreamUnavailable:
            self._proxy.upstream_state.suspect()
            raise
        finally:
            self._engine_s = perf_counter() - sent
        return response

    async def _relay(self, response: UpstreamResponse) -> None:
        send = self._send
        headers = [header for header in response.headers if header[0] not in DROPPED_RESPONSE_HEADERS]
        headers.extend(self._own_headers())
        whole = response.take_all()
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        if whole is not None:
            if self._path == "/v1/models" and self._proxy.sampling is not None:
                whole = self._proxy.sampling.list_aliases(whole)
                start["headers"] = [each for each in headers if each[0] != b"content-length"]
            self._status = response.status
            self._response_bytes = len(whole)
            if self._connection is not None and (b"content-length", b"%d" % len(whole)) in headers:
                self._connection.write_answer(response.status, headers, whole)
            else:
                await send(start)
                await send({"type": "http.response.body", "body": whole})
            return
        waited_from = perf_counter()
        try:
            async for chunk in response:
                if not self._response_bytes:
                    self._status = response.status
                    self._first_token_s = perf_counter() - self._started
                    await send(start)
                self._response_bytes += len(chunk)
                self._last_piece = chunk
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await self._pump(response)
        except UpstreamError as error:
            await self._break_off(response, error)
            return
        finally:
            self._engine_s += max(0.0, response.received_at - waited_from)
        if not self._response_bytes:
            self._status = response.status
            await send(start)
        await send({"type": "http.response.body", "body": b""})

    async def _pump(self, response: UpstreamResponse) -> None:
        """Relay the rest from socket to socket, where the server can: see `PreambleHttpProtocol.write_chunk`."""
        connection = self._connection
        if connection is None or any(name == b"content-length" for name, _ in response.headers):
            return
        write_chunk = connection.write_chunk

        def relay(chunk: bytes) -> None:
            self._response_bytes += len(chunk)
            self._last_piece = chunk
            if not write_chunk(chunk):
                response.pause()

        connection.on_drain(response.resume)
        try:
            await response.pump(relay)
        finally:
            connection.on_drain(None)

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the head of an answer that a run writes."""
        self._status = status
        start = {"type": "http.response.start", "status": status, "headers": [*headers, *self._own_headers()]}
        await self._send(start)

    async def write(self, data: bytes, *, is_token: bool = True) -> None:
        """Send a piece of it."""
        if is_token and not self._response_bytes:
            self._first_token_s = perf_counter() - self._started
        self._response_bytes += len(data) if is_token else 0
        if self._connection is not None and self._connection.write_chunk(data):
            return
        rest = data if self._connection is None else b""  # then the client is behind: wait for it
        await self._send({"type": "http.response.body", "body": rest, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send its last piece."""
        self._response_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data})

    async def _break_off(self, response: UpstreamResponse, error: UpstreamError) -> None:
        """End an answer that the upstream did not finish so that the client cannot take it for a whole one."""
        if not self._response_bytes:
            raise error  # nothing has been sent yet: an ordinary error answer is still possible
        self._proxy.metrics.upstream_errors.labels(error.code).inc()
        if _is_event_stream(response):
            # As vLLM does it. The blank line ends an event that was cut in two.
            event = b"\n\ndata: " + orjson.dumps(error.body()) + b"\n\n"
            await self._send({"type": "http.response.body", "body": event})
        # Anything else: returning without an end makes the server close the connection, which is what a client of a
        # truncated body has to see.

    async def _refuse(self, error: PreambleError) -> None:
        """Answer with an error of ours."""
        if isinstance(error, UpstreamError):
            self._proxy.metrics.upstream_errors.labels(error.code).inc()
        body = error.body_bytes()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *((name.encode(), value.encode()) for name, value in error.headers),
            *self._own_headers(),
        ]
        self._status = error.status
        self._response_bytes = len(body)
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _own_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        own: tuple[tuple[bytes, bytes], ...] = ((b"x-request-id", self._request_id.encode()),)
        if self._constitution is not None:
            own += ((b"x-preamble-constitution", self._constitution.header),)
        if self._sampling_note is not None:
            own += ((SAMPLING_HEADER, self._sampling_note),)
        return own

    def _count_disconnect(self, phase: str) -> None:
        self._status = CLIENT_CLOSED_REQUEST
        self._proxy.metrics.disconnects.labels(phase).inc()

    def _account(self) -> None:
        duration = perf_counter() - self._started
        self._series.finish(self._status, duration, max(0.0, duration - self._engine_s), self._first_token_s)
        log = self._proxy.access_log
        if log is not None:
            log.write(
                request_id=self._request_id,
                method=self._scope["method"],
                route=self._route.name,
                status=self._status,
                user=None if self._identity is None else self._identity.user,
                constitution=None if self._constitution is None else self._constitution.tag,
                duration_s=duration,
                request_bytes=self._request_bytes,
                response_bytes=self._response_bytes,
            )


async def _hang_up_message(receive: Receive, hang_up: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    hang_up()


def accepted_request_id(given: bytes) -> str | None:
    """Return the client's request id if there is one, short and printable."""
    if given and len(given) <= _MAX_REQUEST_ID and given.isascii():
        text = given.decode("ascii")
        if text.isprintable() and " " not in text:
            return text
    return None


def _is_event_stream(response: UpstreamResponse) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in response.headers)


def _known(identity: Identity | None) -> Identity:
    if identity is None:
        raise RuntimeError("a request is identified before its body is read")
    return identity
