from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from fastapi.testclient import TestClient

from server.records import ApiKey
from server.store import Store
from server.wire import ErrorBody, KeyListBody, NewKeyBody
from tests.server.rest_app import ADMIN_KEY, Upstream, build_app

KEYS = "/v1/keys"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('store')}/preamble.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(build_app(store, Upstream())) as opened:
        yield opened


@pytest.fixture
def before(store: Store) -> tuple[ApiKey, ...]:
    return store.keys()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


ADMIN = bearer(ADMIN_KEY)


def assert_error(response: httpx2.Response, status: int, *, param: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = ErrorBody.model_validate_json(response.content, strict=True).error
    if param is not None:
        assert error.param == param
    return error.message


def make(client: TestClient, **wanted: object) -> NewKeyBody:
    response = client.post(KEYS, json=wanted, headers=ADMIN)
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    return NewKeyBody.model_validate_json(response.content)


def test_a_new_key_works_at_once_and_acts_as_its_user(client: TestClient) -> None:
    made = make(client, user="acme", label="billing")
    assert (made.user, made.label, made.admin, made.may_name_sub_users) == ("acme", "billing", False, False)
    put = client.put("/v1/constitution", json={"principles": ["Be brief."]}, headers=bearer(made.key))
    assert put.json()["user"] == "acme"


def test_a_new_key_has_the_rights_that_were_asked_for(client: TestClient) -> None:
    admin = make(client, user="ops", admin=True)
    assert client.get(KEYS, headers=bearer(admin.key)).status_code == 200
    naming = make(client, user="acme", may_name_sub_users=True)
    headers = bearer(naming.key) | {"x-preamble-user": "alice"}
    assert client.put("/v1/constitution", json=["Be brief."], headers=headers).json()["user"] == "acme:alice"


def test_the_token_is_shown_once_and_never_listed(client: TestClient) -> None:
    made = make(client, user="acme")
    listed = client.get(KEYS, headers=ADMIN)
    assert made.id in {key.id for key in KeyListBody.model_validate_json(listed.content).data}
    assert made.key not in listed.text
    assert made.key[13:] not in listed.text


def test_a_revoked_key_is_refused_at_once_and_stays_listed(client: TestClient) -> None:
    made = make(client, user="ops", admin=True)
    assert client.get(KEYS, headers=bearer(made.key)).status_code == 200
    revoked = client.delete(f"{KEYS}/{made.id}", headers=ADMIN)
    assert revoked.status_code == 200
    assert isinstance(revoked.json()["revoked_at"], int)
    assert_error(client.get(KEYS, headers=bearer(made.key)), 401)
    assert revoked.json() in client.get(KEYS, headers=ADMIN).json()["data"]
    assert client.delete(f"{KEYS}/{made.id}", headers=ADMIN).json() == revoked.json()


def test_an_unknown_key_is_404(client: TestClient) -> None:
    assert_error(client.delete(f"{KEYS}/nonesuch", headers=ADMIN), 404, param="key_id")


def test_only_admins_administer_keys(client: TestClient, store: Store) -> None:
    made = make(client, user="acme", may_name_sub_users=True)
    before = store.keys()
    for status, headers in ((401, {}), (401, bearer("pre_unknown")), (403, bearer(made.key))):
        assert_error(client.get(KEYS, headers=headers), status)
        assert_error(client.post(KEYS, json={"user": "acme", "admin": True}, headers=headers), status)
        assert_error(client.delete(f"{KEYS}/{made.id}", headers=headers), status)
    assert store.keys() == before


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "user"),
        ({"user": 7}, "user"),
        ({"user": "a b"}, "user"),
        ({"user": "acme", "admin": "yes"}, "admin"),
        ({"user": "acme", "label": "x" * 201}, "label"),
        ({"user": "acme:alice", "may_name_sub_users": True}, "may_name_sub_users"),
        ({"user": "acme", "role": "admin"}, "role"),
    ],
)
def test_a_wrong_wish_is_400_and_names_the_field(
    client: TestClient, store: Store, before: tuple[ApiKey, ...], body: dict[str, object], param: str
) -> None:
    assert_error(client.post(KEYS, json=body, headers=ADMIN), 400, param=param)
    assert store.keys() == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"user": "\xff"}'])
def test_what_is_no_json_object_is_400(client: TestClient, body: bytes) -> None:
    assert_error(client.post(KEYS, content=body, headers=ADMIN | {"content-type": "application/json"}), 400)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_any_web_page_could_send_is_415(
    client: TestClient, store: Store, before: tuple[ApiKey, ...], media_type: str | None
) -> None:
    headers = ADMIN if media_type is None else ADMIN | {"content-type": media_type}
    assert_error(client.post(KEYS, content=b'{"user": "acme"}', headers=headers), 415)
    assert store.keys() == before


def test_a_body_over_the_limit_is_413(client: TestClient) -> None:
    assert_error(client.post(KEYS, json={"user": "acme", "label": "x" * 20_000}, headers=ADMIN), 413)
