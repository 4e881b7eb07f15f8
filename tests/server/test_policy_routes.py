"""Default policies over REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from server.policy import PolicyFields
from server.policy_wire import PolicyBody, to_plain
from server.records import UserPolicy
from server.store import Store
from tests.server.rest_app import ADMIN_KEY, POLICY, Upstream, build_app, client_of

OWN = "/v1/policy"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, FastAPI]]:
    """One application for all tests: FastAPI takes longer to build it than the tests take to use it."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('store') / 'preamble.db'}") as opened:
        yield opened, build_app(opened, Upstream())


@pytest.fixture
def store(shared: tuple[Store, FastAPI]) -> Store:
    for policy in shared[0].policies():
        shared[0].delete_policy(policy.user)
    return shared[0]


@pytest.fixture
def anonymous(shared: tuple[Store, FastAPI], store: Store) -> Iterator[TestClient]:
    with TestClient(shared[1]) as client:
        yield client


@pytest.fixture
def alice(anonymous: TestClient, store: Store) -> TestClient:
    return client_of(anonymous, store.create_key("alice")[1])


@pytest.fixture
def admin(anonymous: TestClient) -> TestClient:
    return client_of(anonymous, ADMIN_KEY)


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert len(error["message"]) > 20
    return error


def test_the_answer_shows_what_was_said_and_what_it_comes_to(alice: TestClient) -> None:
    response = alice.put(OWN, json={"n_max": 4, "checkpoints": [{"tokens": 8, "keep": 0.5}]})
    assert response.status_code == 201
    body = PolicyBody.model_validate_json(response.content)
    assert (body.version, body.user, body.problem, body.default_from) == (1, "alice", None, "policy")
    assert response.json()["said"] == {"n_max": 4, "checkpoints": [{"tokens": 8, "keep": 0.5}]}
    effective = response.json()["effective"]
    assert effective.keys() == PolicyFields.model_fields.keys()
    # Fields without a mode mean adaptive where the server is off; what is not said is the server's.
    assert (effective["mode"], effective["n_max"], effective["threshold"]) == ("adaptive", 4, 0.7)
    assert effective["checkpoints"] == [{"tokens": 8, "keep": 0.5}]
    got = alice.get(OWN)
    assert (got.status_code, got.json()) == (200, response.json())
    assert got.headers["etag"] == response.headers["etag"] == f'"{body.id}@1"'
    assert got.headers["cache-control"] == "private, no-cache"


def test_put_replaces_all_fields_and_the_same_again_changes_nothing(alice: TestClient) -> None:
    alice.put(OWN, json={"n_max": 4})
    replaced = alice.put(OWN, json={"threshold": 0.5})
    assert (replaced.status_code, replaced.json()["said"], replaced.json()["version"]) == (200, {"threshold": 0.5}, 2)
    again = alice.put(OWN, json={"threshold": 0.5})
    assert (again.status_code, again.json()) == (200, replaced.json())


def test_what_get_gave_can_be_edited_and_put_back(alice: TestClient) -> None:
    alice.put(OWN, json={"mode": "best_of_n", "n_max": 4})
    got = alice.get(OWN)
    body = got.json()
    body["said"]["n_max"] = 3
    put = alice.put(OWN, json=body, headers={"if-match": got.headers["etag"]})
    assert put.json()["said"] == {"mode": "best_of_n", "n_max": 3}
    body["said"]["n_max"] = 0
    assert error_of(alice.put(OWN, json=body), 400)["param"] == "said.n_max"


def test_of_two_edits_of_the_same_the_second_is_412(alice: TestClient) -> None:
    etag = alice.put(OWN, json={"n_max": 4}).headers["etag"]
    assert alice.put(OWN, json={"n_max": 5}, headers={"if-match": etag}).status_code == 200
    for response in (
        alice.put(OWN, json={"n_max": 6}, headers={"if-match": etag}),
        alice.delete(OWN, headers={"if-match": etag}),
    ):
        error = error_of(response, 412)
        assert (error["param"], error["code"]) == ("if-match", "version_conflict")
    assert error_of(alice.put(OWN, json={}, headers={"if-none-match": "*"}), 412)["param"] == "if-none-match"
    assert alice.get(OWN).json()["said"] == {"n_max": 5}


def test_delete_leaves_nothing_and_nothing_is_404(alice: TestClient) -> None:
    alice.put(OWN, json={"n_max": 4})
    deleted = alice.delete(OWN)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for response in (alice.get(OWN), alice.delete(OWN)):
        assert error_of(response, 404)["code"] == "policy_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n_max": 0}, "n_max"),
        ({"nmax": 3}, "nmax"),
        ({"checkpoints": [{"tokens": 4, "keep": 2}]}, "checkpoints[0].keep"),
        ({"annealing": {"rate": 7}}, "annealing.rate"),
        # Each right, and not to be had together.
        ({"selector": "majority"}, "selector"),
        ({"selector": "reward_model"}, "selector"),  # this server has none
        ({"commit_at": 9, "streaming": "whole"}, "commit_at"),
        ({"checkpoints": [{"tokens": 9, "keep": 1}, {"tokens": 9, "keep": 1}]}, "checkpoints[1].tokens"),
        ({"object": "policy"}, "said"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it_and_nothing_is_stored(
    alice: TestClient, body: dict[str, Any], param: str
) -> None:
    error = error_of(alice.put(OWN, json=body), 400)
    assert error["param"] == param
    assert f"'{param}'" in error["message"]
    assert alice.get(OWN).status_code == 404


def test_a_body_that_is_no_policy_at_all_is_refused(alice: TestClient) -> None:
    assert error_of(alice.put(OWN, json=[]), 400)["code"] == "invalid_json"
    headers = {"content-type": "text/plain"}
    assert error_of(alice.put(OWN, content="mode=off", headers=headers), 415)["param"] == "content-type"
    assert error_of(alice.put(OWN, json={"answer_regex": "x" * 20_000}), 413)["code"] == "request_too_large"


def test_whose_it_is_follows_the_key(anonymous: TestClient, alice: TestClient, admin: TestClient, store: Store) -> None:
    named = "/v1/users/alice/policy"
    assert error_of(anonymous.get(OWN), 401)
    assert admin.put(named, json={"n_max": 4}).status_code == 201
    assert alice.get(OWN).json() == alice.get(named).json() == admin.get(named).json()
    bob = client_of(anonymous, store.create_key("bob")[1])
    for method in ("GET", "PUT", "DELETE"):
        refused = error_of(bob.request(method, named, json={}), 404)
        assert refused["code"] == "policy_not_found"
    assert error_of(admin.get("/v1/users/a%20b/policy"), 400)["param"] == "user"
    acme = client_of(anonymous, store.create_key("acme", may_name_sub_users=True)[1])
    assert acme.put("/v1/users/acme:ann/policy", json={"n_max": 2}).status_code == 201
    assert acme.get(OWN, headers={"x-preamble-user": "ann"}).json()["user"] == "acme:ann"


def test_a_policy_that_no_longer_goes_with_the_servers_default_is_shown_with_the_reason() -> None:
    policy = UserPolicy("pol_a", 1, "alice", '{"commit_at":9}', updated_at=1)
    assert to_plain(policy, POLICY, default_from="policy", reward_model=False)["problem"] is None
    shown = to_plain(policy, PolicyFields(streaming="whole"), default_from="policy", reward_model=False)
    assert shown["effective"] is None
    assert shown["problem"].startswith("'policy.commit_at': ")
    PolicyBody.model_validate_json(json.dumps(shown))


def test_a_damaged_policy_is_named_and_can_be_replaced(alice: TestClient, store: Store) -> None:
    store.put_policy("alice", '{"n_max":-1}')
    assert "damaged" in error_of(alice.get(OWN), 503)["message"]
    assert alice.put(OWN, json={"n_max": 4}).json()["version"] == 2


def test_the_openapi_document_describes_the_routes_with_the_policys_fields(shared: tuple[Store, FastAPI]) -> None:
    document = shared[1].openapi()
    for path in (OWN, "/v1/users/{user}/policy"):
        assert sorted(document["paths"][path]) == ["delete", "get", "put"]
        body = document["paths"][path]["put"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/PolicyFields"}
    assert document["components"]["schemas"]["PolicyFields"]["properties"].keys() == PolicyFields.model_fields.keys()
    example = document["components"]["schemas"]["PolicyBody"]["examples"][0]
    assert PolicyBody.model_validate_json(json.dumps(example)).said.said() == {"mode": "adaptive", "n_max": 4}
