"""REST routes of constitutions: `/v1/constitution` for the caller's own, `/v1/users/{user}/constitution` for admins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from constitutions.compose import Placement
from constitutions.constitution import Constitution, ConstitutionError, Limits
from constitutions.diff import changes_to_plain, diff
from constitutions.formats import UnknownMediaType, from_plain, parse, render, select_media_type
from server import constitution_openapi as openapi
from server.bodies import content_type, is_json, json_object, read_body
from server.caller_headers import IdentifyCaller, caller_parameters, subject_of
from server.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from server.preview import CountTokens, preview
from server.proxy import check_messages
from server.records import ConstitutionVersion, matches_etag
from server.store import MAX_VERSION, Store
from server.wire import version_to_plain, without_metadata

IfMatch = Annotated[
    str | None, Header(description="The ETag of the active version that the change builds on; `*` for any.")
]
VersionNumber = Annotated[int, Path(description="Number of a version, from 1.")]


def build_router(
    *,
    store: Store,
    identify: IdentifyCaller,
    limits: Limits,
    max_body_bytes: int,
    placement: Callable[[], Placement],
    count_tokens: CountTokens,
    context_tokens: Callable[[], int | None] = lambda: None,
) -> APIRouter:
    """Return the routes.

    `identify` tells who is calling from Authorization, x-api-key and x-preamble-user. `placement` says where the
    upstream takes a constitution now, `count_tokens` asks its tokenizer, `context_tokens` gives its model's context
    window if known.
    """
    endpoints = _Endpoints(store, identify, limits, max_body_bytes, placement, count_tokens, context_tokens)
    router = APIRouter(tags=["Constitutions"], dependencies=caller_parameters())
    endpoints.add_to(router, "/v1/constitution")
    endpoints.add_to(router, "/v1/users/{user}/constitution", Depends(_user_parameter))
    return router


def _user_parameter(
    user: Annotated[str, Path(description="Whose constitution; another user's only with an admin key.")],
) -> None:
    """Describe the path parameter, which `_Endpoints` reads from the request."""


@dataclass(frozen=True, slots=True)
class _Endpoints:
    """The endpoints, the same under both prefixes."""

    store: Store
    identify: IdentifyCaller
    limits: Limits
    max_body_bytes: int
    placement: Callable[[], Placement]
    count_tokens: CountTokens
    context_tokens: Callable[[], int | None]

    def add_to(self, router: APIRouter, prefix: str, *dependencies: Any) -> None:
        """Register the endpoints under `prefix`."""
        for method, path, endpoint, description in (
            ("PUT", "", self.put, openapi.PUT),
            ("GET", "", self.get, openapi.GET),
            ("DELETE", "", self.delete, openapi.DELETE),
            ("GET", "/versions", self.versions, openapi.LIST),
            ("GET", "/versions/{version}", self.version, openapi.GET_VERSION),
            ("GET", "/versions/{a}/diff/{b}", self.diff, openapi.DIFF),
            ("POST", "/versions/{version}/activate", self.activate, openapi.ACTIVATE),
            ("POST", "/preview", self.preview, openapi.PREVIEW),
        ):
            router.add_api_route(
                prefix + path,
                endpoint,
                methods=[method],
                dependencies=dependencies,
                response_class=Response,
                **description,
            )

    async def put(
        self,
        request: Request,
        if_match: IfMatch = None,
        if_none_match: Annotated[str | None, Header(description="`*`: only if there is none yet.")] = None,
    ) -> Response:
        """Make the body the user's active constitution.

        Versions are immutable: every change makes a new one. Send the ETag of the version that you have edited as
        `If-Match`, and an edit that somebody else made in between is not lost: the answer is then 412.
        """
        user = await subject_of(request, self.identify, "constitution")
        media_type = _media_type(request)  # before the write: afterwards it would be too late to refuse
        body = await read_body(request, min(self.max_body_bytes, self.limits.max_body_bytes))
        version, created = await run_in_threadpool(
            self.store.put,
            user,
            _parse(content_type(request), body, self.limits),
            if_match=if_match,
            if_none_match=if_none_match,
        )
        return _answer(version, media_type, status=201 if created else 200)

    async def get(
        self,
        request: Request,
        if_none_match: Annotated[str | None, Header(description="An ETag: 304 if it is still the active one.")] = None,
    ) -> Response:
        """Return the version that goes into the user's requests, as JSON with what is known of it, or as it is written.

        `Accept: application/yaml` and `text/markdown` give the bare constitution, ready to be edited and PUT again.
        """
        user = await subject_of(request, self.identify, "constitution")
        media_type = _media_type(request)
        version = await run_in_threadpool(self.store.active, user)
        if if_none_match is not None and matches_etag(if_none_match, version.tag):
            return Response(status_code=304, headers=_headers(version))
        return _answer(version, media_type)

    async def delete(self, request: Request, if_match: IfMatch = None) -> Response:
        """Delete the constitution and all its versions, for good. A later PUT starts another one, with another id."""
        user = await subject_of(request, self.identify, "constitution")
        await run_in_threadpool(self.store.delete, user, if_match=if_match)
        return Response(status_code=204)

    async def versions(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100, description="Most versions on the page.")] = 20,
        before: Annotated[
            int | None, Query(ge=1, le=MAX_VERSION, description="Only versions older than this number.")
        ] = None,
    ) -> Response:
        """Return the versions, the newest first. For the next page, send the last number as `before`."""
        user = await subject_of(request, self.identify, "constitution")
        versions, has_more = await run_in_threadpool(self.store.versions, user, limit=limit, before=before)
        return _json(
            {"object": "list", "data": [version_to_plain(version) for version in versions], "has_more": has_more}
        )

    async def version(self, request: Request, version: VersionNumber) -> Response:
        """Return one version, in any of the formats of the active one."""
        user = await subject_of(request, self.identify, "constitution")
        media_type = _media_type(request)
        return _answer(await run_in_threadpool(self.store.version, user, version), media_type)

    async def diff(self, request: Request, a: VersionNumber, b: VersionNumber) -> Response:
        """Return what was added, removed, moved and changed on the way from version `a` to version `b`."""
        user = await subject_of(request, self.identify, "constitution")

        def compare() -> dict[str, object]:
            before, after = self.store.version(user, a), self.store.version(user, b)
            changes = changes_to_plain(diff(before.constitution, after.constitution))
            return {
                "object": "constitution.diff",
                "id": after.id,
                "from_version": before.version,
                "to_version": after.version,
                "changes": changes,
            }

        return _json(await run_in_threadpool(compare))

    async def activate(self, request: Request, version: VersionNumber, if_match: IfMatch = None) -> Response:
        """Make an earlier (or later) version the active one, without making a new one."""
        user = await subject_of(request, self.identify, "constitution")
        media_type = _media_type(request)
        return _answer(await run_in_threadpool(self.store.activate, user, version, if_match=if_match), media_type)

    async def preview(self, request: Request) -> Response:
        """Return what a constitution does to a chat request, without storing or sending anything.

        The body is a constitution in any format; or JSON with `constitution`, `messages` or both; or empty. Without a
        constitution it is the active one.
        """
        user = await subject_of(request, self.identify, "constitution")
        body = await read_body(request, self.max_body_bytes)
        constitution, messages = _preview_request(content_type(request), body, self.limits)
        tag = None
        if constitution is None:
            active = await run_in_threadpool(self.store.active, user)
            constitution, tag = active.constitution, active.tag
        shown = await preview(
            constitution,
            messages,
            tag=tag,
            placement=self.placement(),
            count_tokens=self.count_tokens,
            context_tokens=self.context_tokens(),
        )
        return _json(shown.model_dump())


def _media_type(request: Request) -> str:
    chosen = select_media_type(request.headers.get("accept"))
    if chosen is None:
        raise NotAcceptable(
            "None of the formats in Accept can be written. Use application/json, application/yaml or text/markdown.",
            param="accept",
        )
    return chosen


def _parse(media_type: str, body: bytes, limits: Limits) -> Constitution:
    """Return the constitution in a body. What GET answers in JSON is one too. Raises the matching `PreambleError`."""
    try:
        if is_json(media_type) and b'"object"' in body:
            # It may be an answer of ours, edited: then what is not part of the constitution is set aside.
            return from_plain(without_metadata(json_object(media_type, body)), limits)
        return parse(media_type, body, limits)
    except UnknownMediaType as error:
        raise UnsupportedMediaType(f"Content-Type: {error}.", param="content-type") from error
    except ConstitutionError as error:
        raise _invalid(error) from error


def _preview_request(media_type: str, body: bytes, limits: Limits) -> tuple[Constitution | None, list[dict[str, Any]]]:
    """Return the constitution to preview, None for the active one, and the messages to put it into."""
    if not body.strip():
        return None, []
    value = json_object(media_type, body) if is_json(media_type) and body.lstrip().startswith(b"{") else None
    if value is None or "principles" in value:
        return _parse(media_type, body, limits), []
    unknown = value.keys() - {"constitution", "messages"}
    if unknown:
        name = min(unknown)
        raise BadRequest(f"There is no field {name!r}. Send 'constitution', 'messages' or both.", param=name)
    messages = value.get("messages") or []
    if messages:
        check_messages(messages, "messages")
    given = value.get("constitution")
    if given is None:
        return None, messages
    try:
        return from_plain(without_metadata(given) if isinstance(given, dict) else given, limits), messages
    except ConstitutionError as error:
        raise _invalid(error.inside("constitution")) from error


def _invalid(error: ConstitutionError) -> BadRequest:
    what = f"'{error.path}'" if error.path else "The body"
    return BadRequest(f"{what} {error.message}.", param=error.path or None, code="invalid_constitution")


def _answer(version: ConstitutionVersion, media_type: str, *, status: int = 200) -> Response:
    """Return a version: JSON tells all that is known of it, the other formats are the bare constitution."""
    if is_json(media_type):
        content = orjson.dumps(version_to_plain(version))
    else:
        content = render(media_type, version.constitution)
    return Response(content, status_code=status, media_type=media_type, headers=_headers(version))


def _headers(version: ConstitutionVersion) -> dict[str, str]:
    return {
        "etag": version.etag,
        "x-preamble-constitution": version.tag,
        "cache-control": "private, no-cache",
        "vary": "accept, authorization, x-api-key, x-preamble-user",
    }


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
