from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from server.error_routes import field_name, install_error_shape
from server.errors import BadRequest, StoreUnavailable
from server.wire import ErrorBody, ErrorDetail


class Inner(BaseModel):
    text: str


class Outer(BaseModel):
    inner: list[Inner]


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    install_error_shape(app)

    @app.get("/ours")
    def ours() -> None:
        raise BadRequest("Wrong.", param="field", code="wrong", headers=(("x-more", "yes"),))

    @app.get("/store")
    def store() -> None:
        raise StoreUnavailable("Down.")

    @app.get("/unexpected")
    def unexpected() -> None:
        raise RuntimeError("a secret detail")

    @app.get("/http/{status}")
    def http(status: int) -> None:
        raise HTTPException(status, "Said by the framework")

    @app.post("/typed")
    def typed(body: Outer, limit: int = 1) -> None:
        pass

    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


def error_of(client: TestClient, method: str, path: str, status: int, **options: object) -> ErrorDetail:
    response = client.request(method, path, **options)  # type: ignore[arg-type]  # passed on as they are
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    return ErrorBody.model_validate_json(response.content, strict=True).error


def test_an_error_of_ours_comes_as_it_is(client: TestClient) -> None:
    error = error_of(client, "GET", "/ours", 400)
    assert error == ErrorDetail(message="Wrong.", type="invalid_request_error", param="field", code="wrong")
    assert client.get("/ours").headers["x-more"] == "yes"


def test_an_unavailable_store_says_when_to_come_back(client: TestClient) -> None:
    assert error_of(client, "GET", "/store", 503).code == "store_unavailable"
    assert client.get("/store").headers["retry-after"] == "1"


def test_an_unknown_path_is_404(client: TestClient) -> None:
    assert error_of(client, "GET", "/nothing", 404).code == "not_found"


def test_a_wrong_method_is_405_and_names_the_right_ones(client: TestClient) -> None:
    assert error_of(client, "DELETE", "/ours", 405).code == "method_not_allowed"
    assert client.delete("/ours").headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"json": {"inner": [{"text": "a"}, {"text": 7}]}}, "inner[1].text"),
        ({"json": {}}, "inner"),
        ({"json": {"inner": []}, "params": {"limit": "x"}}, "limit"),
    ],
)
def test_what_fastapi_finds_wrong_is_400_and_names_the_field(
    client: TestClient, options: dict[str, object], param: str
) -> None:
    assert error_of(client, "POST", "/typed", 400, **options).param == param


def test_an_unexpected_error_is_500_without_details(client: TestClient) -> None:
    response = client.get("/unexpected")
    assert response.status_code == 500
    assert ErrorBody.model_validate_json(response.content).error.type == "server_error"
    assert "secret" not in response.text


def test_other_errors_of_the_framework_have_the_shape_too(client: TestClient) -> None:
    assert error_of(client, "GET", "/http/418", 418).type == "invalid_request_error"
    assert error_of(client, "GET", "/http/502", 502).type == "server_error"


def test_a_field_is_named_as_a_client_writes_it() -> None:
    assert field_name(("principles", 3, "text")) == "principles[3].text"
    assert field_name((0, "text")) == "[0].text"
    assert field_name(()) == ""
