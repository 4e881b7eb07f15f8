"""REST routes that administer API keys, for admins: the same as `preamble keys create|list|revoke`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from server.bodies import content_type, json_object, read_body
from server.caller_headers import IdentifyCaller, caller_of, caller_parameters
from server.error_routes import field_name
from server.errors import BadRequest, Forbidden
from server.store import Store
from server.wire import KeyBody, KeyListBody, KeyRequest, NewKeyBody, error_responses

_MAX_BODY_BYTES: Final = 16 * 1024


def build_router(*, store: Store, identify: IdentifyCaller) -> APIRouter:
    """Return `/v1/keys`. `identify` tells who is calling from Authorization, x-api-key and x-preamble-user."""
    router = APIRouter(prefix="/v1/keys", tags=["API keys"], dependencies=caller_parameters())
    admin_only = _admin_only(identify)

    @router.post(
        "",
        status_code=201,
        summary="Make a key",
        responses=error_responses(400, 401, 403, 413, 415, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": KeyRequest.model_json_schema()}},
            }
        },
    )
    async def create(request: Request, response: Response) -> NewKeyBody:
        """Make an API key. The answer holds its token, this once: only a digest of it is kept."""
        await admin_only(request)
        wanted = _key_request(json_object(content_type(request), await read_body(request, _MAX_BODY_BYTES)))
        key, token = await run_in_threadpool(
            store.create_key,
            wanted.user,
            label=wanted.label,
            admin=wanted.admin,
            may_name_sub_users=wanted.may_name_sub_users,
        )
        response.headers["cache-control"] = "no-store"
        return NewKeyBody(**KeyBody.of(key).model_dump(), key=token)

    @router.get("", summary="List the keys", responses=error_responses(401, 403, 503))
    async def list_keys(request: Request) -> KeyListBody:
        """List all keys, revoked ones too, the newest first. Tokens are not kept and cannot be listed."""
        await admin_only(request)
        return KeyListBody(data=[KeyBody.of(key) for key in await run_in_threadpool(store.keys)])

    @router.delete("/{key_id}", summary="Revoke a key", responses=error_responses(401, 403, 404, 503))
    async def revoke(request: Request, key_id: Annotated[str, Path(description="Id of the key.")]) -> KeyBody:
        """Revoke a key. Once this is answered no worker takes it any more. It stays listed, and cannot be restored."""
        await admin_only(request)
        return KeyBody.of(await run_in_threadpool(store.revoke_key, key_id))

    return router


def _admin_only(identify: IdentifyCaller) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        if not (await caller_of(request, identify)).admin:
            raise Forbidden("Only an admin may see and change API keys. Use an admin key.")

    return check


def _key_request(value: dict[str, object]) -> KeyRequest:
    try:
        return KeyRequest.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = field_name(first["loc"])
        raise BadRequest(f"'{param}' is wrong: {first['msg']}.", param=param) from error
