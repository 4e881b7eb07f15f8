"""REST routes of default policies: `/v1/policy` for the caller's own, `/v1/users/{user}/policy` for admins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from server import policy_wire
from server.bodies import content_type, json_object, read_body
from server.caller_headers import IdentifyCaller, caller_parameters, subject_of
from server.policy import PolicyFields, read_fields, resolve, to_content
from server.records import UserPolicy
from server.store import Store

# All of them are in every worker's memory.
_MAX_BYTES: Final = 16 * 1024

IfMatch = Annotated[str | None, Header(description="The ETag of the policy that the change builds on; `*` for any.")]


def build_router(
    *, store: Store, identify: IdentifyCaller, default: PolicyFields, default_from: str, reward_model: bool
) -> APIRouter:
    """Return the routes.

    `identify` tells who is calling; `default` is the server's policy, default_from: what says it; reward_model: it has
    one to select by.
    """
    endpoints = _Endpoints(store, identify, default, default_from, reward_model)
    router = APIRouter(tags=["Policies"], dependencies=caller_parameters())
    endpoints.add_to(router, "/v1/policy")
    endpoints.add_to(router, "/v1/users/{user}/policy", Depends(_user_parameter))
    return router


def _user_parameter(
    user: Annotated[str, Path(description="Whose policy; another user's only with an admin key.")],
) -> None:
    """Describe the path parameter, which `_Endpoints` reads from the request."""


@dataclass(frozen=True, slots=True)
class _Endpoints:
    """The endpoints, the same under both prefixes."""

    store: Store
    identify: IdentifyCaller
    default: PolicyFields
    default_from: str
    reward_model: bool

    def add_to(self, router: APIRouter, prefix: str, *dependencies: Any) -> None:
        """Register the endpoints under `prefix`."""
        for method, endpoint, description in (
            ("PUT", self.put, policy_wire.PUT),
            ("GET", self.get, policy_wire.GET),
            ("DELETE", self.delete, policy_wire.DELETE),
        ):
            router.add_api_route(
                prefix, endpoint, methods=[method], dependencies=dependencies, response_class=Response, **description
            )

    async def put(
        self,
        request: Request,
        if_match: IfMatch = None,
        if_none_match: Annotated[str | None, Header(description="`*`: only if there is none yet.")] = None,
    ) -> Response:
        """Make the body the user's default policy.

        Only the fields that are given are kept: the others stay the server's to say, and a request's own fields go
        before. Without a `mode` it means `adaptive` where the server's default is off. What GET gives is taken too.
        """
        user = await subject_of(request, self.identify, "policy")
        fields = self._fields(content_type(request), await read_body(request, _MAX_BYTES))
        policy, changed = await run_in_threadpool(
            self.store.put_policy, user, to_content(fields), if_match=if_match, if_none_match=if_none_match
        )
        return self._answer(policy, status=201 if changed and policy.version == 1 else 200)

    async def get(self, request: Request) -> Response:
        """Return the user's default policy: what was said, and what it comes to with the server's default after it."""
        user = await subject_of(request, self.identify, "policy")
        return self._answer(await run_in_threadpool(self.store.policy, user))

    async def delete(self, request: Request, if_match: IfMatch = None) -> Response:
        """Delete the user's default policy: the server's holds again."""
        user = await subject_of(request, self.identify, "policy")
        await run_in_threadpool(self.store.delete_policy, user, if_match=if_match)
        return Response(status_code=204)

    def _fields(self, media_type: str, body: bytes) -> PolicyFields:
        """Return the fields in a body, each right and all going together. Raises `BadRequest` naming the wrong one."""
        value: Any = json_object(media_type, body)
        inside = ""
        if value.get("object") == policy_wire.OBJECT:  # an answer of ours, edited
            value, inside = value.get(policy_wire.SAID), policy_wire.SAID
        fields = read_fields(value, inside)
        resolve(self.default, (inside, fields), reward_model=self.reward_model)
        return fields

    def _answer(self, policy: UserPolicy, *, status: int = 200) -> Response:
        headers = {
            "etag": policy.etag,
            "cache-control": "private, no-cache",
            "vary": "authorization, x-api-key, x-preamble-user",
        }
        plain = policy_wire.to_plain(
            policy, self.default, default_from=self.default_from, reward_model=self.reward_model
        )
        return Response(orjson.dumps(plain), status_code=status, media_type="application/json", headers=headers)
