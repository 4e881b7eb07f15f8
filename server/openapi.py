"""Describes the proxied routes in the OpenAPI document. FastAPI does not serve them, so it does not know them."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from server.policy import PolicyFields

_HEADERS: Final[list[dict[str, Any]]] = [
    {
        "name": "x-preamble-constitution",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "`none` leaves the constitution out; `<id>@<version>` asks for that version. Without it the "
        "active version is used.",
    },
    {
        "name": "x-preamble-user",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "Acts for a sub-user; only for keys that may name sub-users, and without keys on loopback.",
    },
    {
        "name": "x-request-id",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "maxLength": 128},
        "description": "Comes back on the answer and stands in the logs; made up where it is missing.",
    },
]

_POLICY_HEADER: Final[dict[str, Any]] = {
    "name": "x-preamble-policy",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 4096},
    "description": "The fields of `preamble` as `mode=adaptive, n_max=8`, or as a JSON object.",
}

_PROXIED: Final[dict[str, tuple[str, str, str]]] = {
    "/v1/chat/completions": ("post", "Chat", "The constitution goes into the system message."),
    "/v1/completions": ("post", "Text completion", "A bare prompt has no system message: no constitution is added."),
    "/v1/responses": ("post", "Responses", "The constitution goes into `instructions`."),
    "/v1/messages": ("post", "Anthropic messages", "The constitution goes into `system`."),
    "/v1/embeddings": ("post", "Embeddings", "Relayed."),
    "/v1/models": ("get", "Models", "Relayed: what the upstream serves."),
}


def describe_proxied_routes(app: FastAPI) -> None:
    """Make `app.openapi()` list the proxied routes too."""
    of_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = of_fastapi()
        for path, (method, summary, description) in _PROXIED.items():
            document["paths"].setdefault(path, {})[method] = _operation(method, summary, description)
        _describe_sampling(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _describe_sampling(document: dict[str, Any]) -> None:
    """Add to the chat route what adaptive best-of-N takes and says."""
    policy = PolicyFields.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= policy.pop("$defs", {})
    schemas["PolicyFields"] = policy
    chat = document["paths"]["/v1/chat/completions"]["post"]
    chat["parameters"] = [*chat["parameters"], _POLICY_HEADER]
    body = chat["requestBody"]["content"]["application/json"]["schema"]
    body["properties"] = {"preamble": {"$ref": "#/components/schemas/PolicyFields"}}
    chat["responses"]["200"]["headers"] |= {
        "x-preamble-sampling": {
            "schema": {"type": "string"},
            "description": "Figures of a sampled answer that is not streamed, or `pass_through=<reason>`.",
        }
    }


def _operation(method: str, summary: str, description: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": ["OpenAI"],
        "summary": summary,
        "description": f"{description} Fields, answers and errors are vLLM's; every field is passed on.",
        "operationId": f"proxied_{summary.lower().replace(' ', '_')}",
        "parameters": _HEADERS,
        "responses": {
            "200": {
                "description": "The upstream's answer; `text/event-stream` where `stream` is true.",
                "headers": {
                    "x-preamble-constitution": {
                        "schema": {"type": "string"},
                        "description": "`<id>@<version>` of the constitution that was used, if one was.",
                    }
                },
            },
            "default": {"description": "An error in OpenAI's shape, of the upstream or of the proxy."},
        },
    }
    if method == "post":
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object", "additionalProperties": True}}},
        }
    return operation
