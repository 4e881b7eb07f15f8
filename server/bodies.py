"""Reads what a client sent to a REST route: within a limit, and of a media type that the route takes."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request

from server.errors import BadRequest, BodyTooLarge, UnsupportedMediaType


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the body. Raises `BodyTooLarge` as soon as it is known to be over the limit."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large(limit_bytes)
    return bytes(body)


def content_type(request: Request) -> str:
    """Return the value of Content-Type, empty if there is none."""
    return request.headers.get("content-type", "")


def is_json(media_type: str) -> bool:
    """Return whether a value of Content-Type stands for JSON."""
    name = media_type.partition(";")[0].strip().lower()
    return name in {"application/json", "text/json"} or name.endswith("+json")


def json_object(media_type: str, body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises `UnsupportedMediaType`, also if there is no media type: browsers let any page send such a body to a server on
    this machine, while JSON needs the server's consent. Raises `BadRequest` for anything but an object.
    """
    if not is_json(media_type):
        raise UnsupportedMediaType(
            "This route takes JSON. Send it with 'Content-Type: application/json'.", param="content-type"
        )
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON ({error}). Correct it there.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    return value


def too_large(limit_bytes: int) -> BodyTooLarge:
    """Return the error for a body over the limit."""
    return BodyTooLarge(
        f"The body is over this route's limit of {limit_bytes} bytes. Send less, or ask the operator to raise it."
    )
