"""Every error the proxy answers with, and the one place that gives it OpenAI's shape.

    PreambleError                     status, type, code, param, remedy in the message
    ├── BadRequest                    400  what the client sent is wrong; `param` names the field
    ├── Unauthenticated               401  no key, an unknown one, or a revoked one
    ├── Forbidden                     403  a valid key that may not do this
    ├── NotFound                      404  also for what belongs to somebody else: existence is not revealed
    ├── MethodNotAllowed              405
    ├── NotAcceptable                 406  the client takes none of the formats that there are
    ├── PreconditionFailed            412  `If-Match` names a version that is no longer the active one
    ├── BodyTooLarge                  413
    ├── UnsupportedMediaType          415
    ├── StoreUnavailable              503  nothing was written
    └── UpstreamError                      vLLM could not be used; its own answers are relayed, never wrapped
        ├── UpstreamUnavailable       503  not reachable (refused, reset, connect timeout); carries `Retry-After`
        ├── UpstreamBroken            502  it answered with something that is not HTTP, or stopped half way
        └── UpstreamTimeout           504  the timer is in `code`

Shape: https://platform.openai.com/docs/guides/error-codes, `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from typing import ClassVar

import orjson


class PreambleError(Exception):
    """An answer to a client. `message` says what is wrong and what to do about it; `param` names the field, if any."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.headers = headers

    def body(self) -> dict[str, object]:
        """Return the error as OpenAI words it. The outer `type` is what Anthropic clients of /v1/messages look for."""
        return {
            "type": "error",
            "error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code},
        }

    def body_bytes(self) -> bytes:
        """Return `body()` as JSON."""
        return orjson.dumps(self.body())


class BadRequest(PreambleError):
    """400: the request cannot be understood or breaks a rule."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(PreambleError):
    """401: the caller is not known."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"

    def __init__(self, message: str, **rest: str | None) -> None:
        super().__init__(message, code=rest.get("code"), headers=(("www-authenticate", "Bearer"),))


class Forbidden(PreambleError):
    """403: the caller is known and may not do this."""

    status = 403
    type = "permission_error"
    default_code = "insufficient_permissions"


class NotFound(PreambleError):
    """404: it is not there, or it is not the caller's."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class MethodNotAllowed(PreambleError):
    """405: the path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class NotAcceptable(PreambleError):
    """406: the client takes none of the formats that this route can write."""

    status = 406
    type = "invalid_request_error"
    default_code = "not_acceptable"


class PreconditionFailed(PreambleError):
    """412: the version that the client built on is not the active one any more."""

    status = 412
    type = "invalid_request_error"
    default_code = "version_conflict"


class BodyTooLarge(PreambleError):
    """413: the body is over the limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedMediaType(PreambleError):
    """415: the content type is none that this route reads."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class StoreUnavailable(PreambleError):
    """503: the store cannot be read or written now; nothing was written."""

    status = 503
    default_code = "store_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers=(("retry-after", "1"),))


class UpstreamError(PreambleError):
    """The upstream could not be used."""


class UpstreamUnavailable(UpstreamError):
    """503: no connection to the upstream could be made, or it was lost before the first byte."""

    status = 503
    default_code = "upstream_unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 2) -> None:
        super().__init__(message, code=code, headers=(("retry-after", str(retry_after_s)),))


class UpstreamBroken(UpstreamError):
    """502: the upstream answered with something that is not HTTP, or closed half way through an answer."""

    status = 502
    default_code = "upstream_broken"


class UpstreamTimeout(UpstreamError):
    """504: one of the timers fired; `code` is `upstream_first_token_timeout`, `..._stall_...` or `..._total_...`."""

    status = 504
    type = "timeout_error"
