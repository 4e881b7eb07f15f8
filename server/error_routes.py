"""Gives every error of the FastAPI application OpenAI's shape: ours, its own, and those that nobody expected."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.errors import BadRequest, MethodNotAllowed, NotFound, PreambleError

_CLIENT_ERRORS = range(400, 500)
_SERVER_ERROR = 500
_CLIENT_CLOSED_REQUEST = 499


def install_error_shape(app: FastAPI) -> None:
    """Make `app` answer all errors as `{"error": {"message", "type", "param", "code"}}`, none of them with details."""
    app.add_exception_handler(PreambleError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected)


def error_response(error: PreambleError, status: int | None = None) -> Response:
    """Return the answer that tells a client of `error`, with another status than the usual one if it is given."""
    return Response(
        error.body_bytes(),
        status_code=status or error.status,
        media_type="application/json",
        headers=dict(error.headers),
    )


def field_name(location: Sequence[int | str]) -> str:
    """Return where a value stood, as a client would write it: ("principles", 3, "text") is `principles[3].text`."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, PreambleError)  # noqa: S101 - for the type checker: it is registered for this type
    if error.status >= _SERVER_ERROR:
        structlog.get_logger(__name__).error(
            "request_refused", method=request.method, code=error.code, reason=error.message, cause=repr(error.__cause__)
        )
    return error_response(error)


async def _validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
    first = error.errors()[0]
    # FastAPI puts first whether it was in the body, the path, the query or a header.
    param = field_name(first["loc"][1:])
    return error_response(BadRequest(f"'{param}' is wrong: {first['msg']}.", param=param or None))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    headers = tuple((error.headers or {}).items())
    path = request.url.path
    shaped: PreambleError
    if error.status_code == NotFound.status:
        shaped = NotFound(f"There is nothing at {path}. The routes are listed at /docs.")
    elif error.status_code == MethodNotAllowed.status:
        shaped = MethodNotAllowed(f"{request.method} is not supported at {path}. Use one of Allow.", headers=headers)
    elif error.status_code in _CLIENT_ERRORS:
        shaped = BadRequest(f"{error.detail}.", headers=headers)
    else:
        shaped = PreambleError("The server could not answer. Try again.", headers=headers)
    return error_response(shaped, error.status_code)


async def _disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)  # nobody receives it


async def _unexpected(_request: Request, _error: Exception) -> Response:
    # Starlette raises it again after this answer, so the server logs it with its traceback.
    return error_response(
        PreambleError("The server made a mistake. It has been logged; try again, and report it if it stays.")
    )
