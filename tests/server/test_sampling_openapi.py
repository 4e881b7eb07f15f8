"""The OpenAPI document describes what adaptive best-of-N takes and says."""

from __future__ import annotations

from fastapi import FastAPI

from server.openapi import describe_proxied_routes
from server.policy import PolicyFields


def test_the_policy_is_a_schema_of_the_chat_route_with_every_reference_resolved() -> None:
    app = FastAPI()
    describe_proxied_routes(app)
    document = app.openapi()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["properties"]["preamble"] == {
        "$ref": "#/components/schemas/PolicyFields"
    }
    schemas = document["components"]["schemas"]
    assert list(schemas["PolicyFields"]["properties"]) == list(PolicyFields.model_fields)
    assert "x-preamble-policy" in [parameter["name"] for parameter in chat["parameters"]]
    text = str(document)
    for name in {part.split("'")[0] for part in text.split("'#/components/schemas/")[1:]}:
        assert name in schemas
    other = document["paths"]["/v1/completions"]["post"]
    assert "x-preamble-policy" not in [parameter["name"] for parameter in other["parameters"]]
    assert "properties" not in other["requestBody"]["content"]["application/json"]["schema"]
