"""How the OpenAPI document describes the routes of constitutions: what FastAPI cannot see in their signatures."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from server.wire import (
    ConstitutionBody,
    ConstitutionVersionBody,
    ConstitutionVersionListBody,
    DiffBody,
    PreviewBody,
    PreviewRequest,
    error_responses,
)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a request body. What it refers to is in the document as part of the answers' schemas."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def _preview_schema() -> dict[str, Any]:
    schema = _schema(PreviewRequest)
    schema["properties"]["constitution"] = {"anyOf": [_schema(ConstitutionBody), {"type": "null"}]}
    return schema


_TEXTS: Final = {
    "application/yaml": {
        "schema": {"type": "string"},
        "example": "principles:\n  - text: Answer in at most three sentences.\n    dimension: style\n",
    },
    "text/markdown": {"schema": {"type": "string"}, "example": "1. Answer in at most three sentences.\n"},
}
_HEADERS: Final = {
    "etag": {"schema": {"type": "string"}, "description": "For If-Match and If-None-Match."},
    "x-preamble-constitution": {"schema": {"type": "string"}, "description": "`<id>@<version>`"},
}


def _body(required: bool, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}, **_TEXTS}}}


def _version(description: str) -> dict[str, Any]:
    return {"model": ConstitutionVersionBody, "description": description, "headers": _HEADERS, "content": _TEXTS}


PUT: Final[dict[str, Any]] = {
    "summary": "Create a constitution, or a new version of it",
    "responses": {
        200: _version("The active version says just that already: nothing has changed."),
        201: _version("A new version, now active."),
        **error_responses(400, 401, 404, 406, 412, 413, 415, 503),
    },
    "openapi_extra": _body(required=True, schema=_schema(ConstitutionBody)),
}
GET: Final[dict[str, Any]] = {
    "summary": "Get the active version",
    "responses": {
        200: _version("The active version."),
        304: {"description": "The active version is the one that If-None-Match names."},
        **error_responses(401, 404, 406, 503),
    },
}
DELETE: Final[dict[str, Any]] = {
    "summary": "Delete the constitution with all its versions",
    "status_code": 204,
    "responses": error_responses(401, 404, 412, 503),
}
LIST: Final[dict[str, Any]] = {
    "summary": "List the versions",
    "responses": {
        200: {"model": ConstitutionVersionListBody, "description": "A page of versions, the newest first."},
        **error_responses(400, 401, 404, 503),
    },
}
GET_VERSION: Final[dict[str, Any]] = {
    "summary": "Get a version",
    "responses": {200: _version("The version."), **error_responses(400, 401, 404, 406, 503)},
}
DIFF: Final[dict[str, Any]] = {
    "summary": "Compare two versions",
    "responses": {
        200: {"model": DiffBody, "description": "What leads from version a to version b."},
        **error_responses(400, 401, 404, 503),
    },
}
ACTIVATE: Final[dict[str, Any]] = {
    "summary": "Make a version the active one",
    "responses": {200: _version("The version, now active."), **error_responses(400, 401, 404, 406, 412, 503)},
}
PREVIEW: Final[dict[str, Any]] = {
    "summary": "See what a constitution does to a chat request",
    "responses": {
        200: {"model": PreviewBody, "description": "What the upstream would get."},
        **error_responses(400, 401, 404, 413, 415, 503),
    },
    "openapi_extra": _body(required=False, schema={"anyOf": [_preview_schema(), _schema(ConstitutionBody)]}),
}
