from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from constitutions.compose import Placement
from constitutions.constitution import Constitution, Limits, Principle
from constitutions.formats import parse
from server.errors import NotFound
from server.store import Store
from server.wire import (
    ConstitutionVersionBody,
    ConstitutionVersionListBody,
    DiffBody,
    ErrorBody,
    PreviewBody,
)
from tests.server.rest_app import ADMIN_KEY, Upstream, build_app, client_of

OWN = "/v1/constitution"
BRIEF = {"principles": [{"text": "Be brief.", "dimension": "style"}]}
POLITE = {"principles": ["Be polite.", {"text": "Never guess.", "weight": 2.5, "note": "for the lawyers"}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Store, Upstream, FastAPI]]:
    """One application for all tests: FastAPI takes longer to build it than the tests take to use it."""
    file = tmp_path_factory.mktemp("store") / "preamble.db"
    with Store.open(f"sqlite:///{file}") as opened:
        upstream = Upstream()
        yield file, opened, upstream, build_app(opened, upstream)


@pytest.fixture
def file(shared: tuple[Path, Store, Upstream, FastAPI]) -> Path:
    return shared[0]


@pytest.fixture
def store(shared: tuple[Path, Store, Upstream, FastAPI]) -> Store:
    store = shared[1]
    for user in ("alice", "bob", "acme:alice", "acme:bob"):
        with contextlib.suppress(NotFound):
            store.delete(user)
    return store


@pytest.fixture
def upstream(shared: tuple[Path, Store, Upstream, FastAPI]) -> Upstream:
    shared[2].reset()
    return shared[2]


@pytest.fixture
def app(shared: tuple[Path, Store, Upstream, FastAPI]) -> FastAPI:
    return shared[3]


@pytest.fixture
def anonymous(app: FastAPI, store: Store, upstream: Upstream) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def alice(anonymous: TestClient, store: Store) -> TestClient:
    return client_of(anonymous, store.create_key("alice")[1])


@pytest.fixture
def bob(anonymous: TestClient, store: Store) -> TestClient:
    return client_of(anonymous, store.create_key("bob")[1])


@pytest.fixture
def admin(anonymous: TestClient) -> TestClient:
    return client_of(anonymous, ADMIN_KEY)


def put_text(client: TestClient, media_type: str, body: str | bytes, path: str = OWN) -> httpx2.Response:
    return client.put(path, content=body, headers={"content-type": media_type})


def assert_error(response: httpx2.Response, status: int, *, param: str | None = None, code: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = ErrorBody.model_validate_json(response.content, strict=True).error
    assert len(error.message) > 20
    if param is not None:
        assert error.param == param
    if code is not None:
        assert error.code == code
    return error.message


# Create, read, delete


def test_the_first_put_creates_version_1(alice: TestClient) -> None:
    response = alice.put(OWN, json=BRIEF)
    assert response.status_code == 201
    body = ConstitutionVersionBody.model_validate_json(response.content)
    assert (body.version, body.active, body.user) == (1, True, "alice")
    assert response.json()["principles"] == BRIEF["principles"]
    assert response.headers["etag"] == f'"{body.id}@1"'
    assert response.headers["x-preamble-constitution"] == f"{body.id}@1"


def test_the_same_text_again_is_no_new_version(alice: TestClient) -> None:
    first = alice.put(OWN, json=BRIEF)
    again = alice.put(OWN, json=BRIEF)
    assert again.status_code == 200
    assert again.json() == first.json()
    assert again.headers["etag"] == first.headers["etag"]


def test_get_gives_what_is_active(alice: TestClient) -> None:
    alice.put(OWN, json=BRIEF)
    written = alice.put(OWN, json=POLITE)
    response = alice.get(OWN)
    assert response.status_code == 200
    assert response.json() == written.json()
    assert response.headers["etag"] == written.headers["etag"]
    assert response.headers["cache-control"] == "private, no-cache"


def test_delete_removes_all_versions(alice: TestClient) -> None:
    alice.put(OWN, json=BRIEF)
    deleted = alice.delete(OWN)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for path in ("", "/versions", "/versions/1"):
        assert_error(alice.get(OWN + path), 404)
    assert_error(alice.delete(OWN), 404, code="constitution_not_found")


def test_without_a_constitution_everything_is_404(alice: TestClient) -> None:
    for path in ("", "/versions", "/versions/1", "/versions/1/diff/2"):
        assert_error(alice.get(OWN + path), 404)
    assert_error(alice.post(f"{OWN}/versions/1/activate"), 404)
    assert_error(alice.post(f"{OWN}/preview"), 404, code="constitution_not_found")


# Formats


@pytest.mark.parametrize("media_type", ["application/yaml", "text/markdown", "application/json"])
def test_every_format_comes_in_as_it_goes_out(alice: TestClient, media_type: str) -> None:
    alice.put(OWN, json=POLITE)
    out = alice.get(OWN, headers={"accept": media_type})
    assert out.headers["content-type"].startswith(media_type)
    assert out.headers["x-preamble-constitution"].endswith("@1")
    alice.put(OWN, json=BRIEF)
    back = put_text(alice, media_type, out.content)
    assert back.status_code == 201
    assert back.json()["principles"] == [{"text": "Be polite."}, POLITE["principles"][1]]


@pytest.mark.parametrize("media_type", ["application/yaml", "text/markdown"])
def test_text_formats_are_the_bare_constitution(alice: TestClient, media_type: str) -> None:
    put = alice.put(OWN, json=POLITE, headers={"accept": media_type})
    assert put.status_code == 201
    expected = Constitution((Principle("Be polite."), Principle("Never guess.", weight=2.5, note="for the lawyers")))
    for answer in (
        put,
        alice.get(OWN, headers={"accept": media_type}),
        alice.get(f"{OWN}/versions/1", headers={"accept": media_type}),
        alice.post(f"{OWN}/versions/1/activate", headers={"accept": media_type}),
    ):
        assert parse(media_type, answer.content, Limits()) == expected


def test_what_get_gave_can_be_edited_and_put_back(alice: TestClient) -> None:
    alice.put(OWN, json=BRIEF)
    got = alice.get(OWN)
    body = got.json()
    body["principles"].append({"text": "Be kind."})
    response = alice.put(OWN, json=body, headers={"if-match": got.headers["etag"]})
    assert response.status_code == 201
    assert [principle["text"] for principle in response.json()["principles"]] == ["Be brief.", "Be kind."]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_another_content_type_is_415(alice: TestClient, media_type: str) -> None:
    message = assert_error(put_text(alice, media_type, json.dumps(BRIEF)), 415, param="content-type")
    assert "application/yaml" in message
    assert_error(alice.get(OWN), 404)


def test_a_body_without_content_type_is_415(alice: TestClient) -> None:
    assert_error(alice.put(OWN, content=json.dumps(BRIEF).encode()), 415, param="content-type")


def test_an_accept_header_that_nothing_satisfies_is_406_and_nothing_is_written(alice: TestClient) -> None:
    assert_error(alice.put(OWN, json=BRIEF, headers={"accept": "text/html"}), 406, param="accept")
    assert_error(alice.get(OWN), 404)


# Bad bodies


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("", None),
        ("{", None),
        ("[]", "principles"),
        ("null", None),
        ("7", None),
        ("{}", "principles"),
        ('{"principles": []}', "principles"),
        ('{"principles": {}}', "principles"),
        ('{"principles": ["a", ""]}', "principles[1].text"),
        ('{"principles": ["a", 7]}', "principles[1]"),
        ('{"principles": [{"text": "a", "weight": -1}]}', "principles[0].weight"),
        ('{"principles": [{"text": "a", "weight": 1e999}]}', "principles[0].weight"),
        ('{"principles": [{"text": "a", "dimension": "colour"}]}', "principles[0].dimension"),
        ('{"principles": [{"text": "a\\u0000"}]}', "principles[0].text"),
        ('{"principles": [{"text": "\\ud800"}]}', "principles[0].text"),
        ('{"principles": ["a", "a"]}', "principles[1].text"),
        ('{"principles": ["a"], "id": "con_mine"}', None),
        ('{"object": "constitution"}', "principles"),
        ('{"object": "other", "principles": ["a"]}', None),
        ('{"object": "constitution", "principles": ["a"], "x": 1}', None),
        (json.dumps({"principles": [str(number) for number in range(5)]}), "principles"),
        (json.dumps({"principles": ["x" * 201]}), "principles[0].text"),
        (json.dumps({"principles": [f"{number}{'x' * 150}" for number in range(3)]}), "principles"),
        ("[" * 50_000, None),
    ],
)
def test_what_is_no_constitution_is_400_and_names_the_place(alice: TestClient, body: str, param: str | None) -> None:
    assert_error(put_text(alice, "application/json", body), 400, param=param)
    assert_error(alice.get(OWN), 404)


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/yaml", b"principles: ["),
        ("application/yaml", b"\xff\xfe"),
        ("application/yaml", b"a: &a [*a]"),
        ("text/markdown", b""),
        ("application/json", b'{"principles": ["\xff"]}'),
        ("application/json", b'{"object": "constitution", "principles": ["\xff"]}'),
    ],
)
def test_broken_text_is_400(alice: TestClient, media_type: str, body: bytes) -> None:
    assert_error(put_text(alice, media_type, body), 400)


def test_a_body_over_the_limit_is_413_whether_its_length_is_declared_or_not(alice: TestClient) -> None:
    large = b" " * 200_001
    assert_error(put_text(alice, "application/json", large), 413)
    assert_error(alice.post(f"{OWN}/preview", content=large, headers={"content-type": "application/json"}), 413)

    def chunks() -> Iterator[bytes]:
        for _ in range(201):
            yield b" " * 1000

    chunked = alice.put(OWN, content=chunks(), headers={"content-type": "application/json"})
    assert "content-length" not in chunked.request.headers
    assert_error(chunked, 413)


# Concurrent edits


def test_a_stale_if_match_is_412_and_changes_nothing(alice: TestClient) -> None:
    stale = alice.put(OWN, json=BRIEF).headers["etag"]
    current = alice.put(OWN, json=POLITE, headers={"if-match": stale})
    assert current.status_code == 201
    for response in (
        alice.put(OWN, json=BRIEF, headers={"if-match": stale}),
        alice.delete(OWN, headers={"if-match": stale}),
        alice.post(f"{OWN}/versions/1/activate", headers={"if-match": stale}),
    ):
        assert_error(response, 412, param="if-match", code="version_conflict")
    assert alice.get(OWN).json() == current.json()


def test_if_match_without_a_constitution_is_412(alice: TestClient) -> None:
    assert_error(alice.put(OWN, json=BRIEF, headers={"if-match": "*"}), 412)


def test_if_none_match_star_creates_only(alice: TestClient) -> None:
    assert alice.put(OWN, json=BRIEF, headers={"if-none-match": "*"}).status_code == 201
    assert_error(alice.put(OWN, json=POLITE, headers={"if-none-match": "*"}), 412, param="if-none-match")


def test_get_with_the_current_etag_is_304_without_a_body(alice: TestClient) -> None:
    etag = alice.put(OWN, json=BRIEF).headers["etag"]
    unchanged = alice.get(OWN, headers={"if-none-match": etag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == etag
    alice.put(OWN, json=POLITE)
    assert alice.get(OWN, headers={"if-none-match": etag}).status_code == 200


# Versions


@pytest.fixture
def three(alice: TestClient) -> TestClient:
    for body in (BRIEF, POLITE, {"principles": ["Never guess.", "Be kind."]}):
        alice.put(OWN, json=body)
    return alice


def test_versions_are_listed_newest_first_in_pages(three: TestClient) -> None:
    first = three.get(f"{OWN}/versions", params={"limit": 2})
    body = ConstitutionVersionListBody.model_validate_json(first.content)
    assert [(version.version, version.active) for version in body.data] == [(3, True), (2, False)]
    assert body.has_more
    last = three.get(f"{OWN}/versions", params={"limit": 2, "before": 2}).json()
    assert ([version["version"] for version in last["data"]], last["has_more"]) == ([1], False)
    assert len(three.get(f"{OWN}/versions").json()["data"]) == 3


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"before": "0"}, "before"),
        ({"before": "9" * 30}, "before"),
    ],
)
def test_a_wrong_page_is_400_and_names_the_parameter(three: TestClient, query: dict[str, str], param: str) -> None:
    assert_error(three.get(f"{OWN}/versions", params=query), 400, param=param)


def test_every_version_stays_as_it_was(three: TestClient) -> None:
    response = three.get(f"{OWN}/versions/1")
    assert response.status_code == 200
    assert (response.json()["principles"], response.json()["active"]) == (BRIEF["principles"], False)
    assert response.headers["x-preamble-constitution"].endswith("@1")


def test_an_unknown_version_is_404(three: TestClient) -> None:
    for number in ("4", "0", "-1", "9" * 30):
        assert_error(three.get(f"{OWN}/versions/{number}"), 404, code="version_not_found")
        assert_error(three.post(f"{OWN}/versions/{number}/activate"), 404, code="version_not_found")
        assert_error(three.get(f"{OWN}/versions/1/diff/{number}"), 404, code="version_not_found")


def test_what_is_no_number_is_400(three: TestClient) -> None:
    assert_error(three.get(f"{OWN}/versions/latest"), 400, param="version")
    assert_error(three.get(f"{OWN}/versions/1/diff/x"), 400, param="b")


def test_activating_an_earlier_version_brings_it_back(three: TestClient) -> None:
    response = three.post(f"{OWN}/versions/1/activate")
    assert response.status_code == 200
    assert response.json()["active"]
    assert three.get(OWN).json() == response.json()
    assert three.post(f"{OWN}/versions/1/activate").json() == response.json()


def test_a_diff_says_what_leads_from_one_version_to_the_other(three: TestClient) -> None:
    response = three.get(f"{OWN}/versions/2/diff/3")
    body = DiffBody.model_validate_json(response.content)
    assert (body.from_version, body.to_version) == (2, 3)
    assert [
        (change["change"], change.get("principle", change.get("after"))) for change in response.json()["changes"]
    ] == [
        ("removed", {"text": "Be polite."}),
        ("changed", {"text": "Never guess."}),
        ("added", {"text": "Be kind."}),
    ]
    assert three.get(f"{OWN}/versions/2/diff/2").json()["changes"] == []


# Preview


def preview_of(response: httpx2.Response) -> PreviewBody:
    assert response.status_code == 200, response.text
    return PreviewBody.model_validate_json(response.content)


def test_a_preview_shows_the_system_message_and_its_length_and_stores_nothing(alice: TestClient) -> None:
    shown = preview_of(alice.post(f"{OWN}/preview", json=BRIEF))
    assert shown.system_message is not None
    assert shown.system_message["role"] == "system"
    text = shown.system_message["content"]
    assert "1. Be brief." in text
    assert (shown.token_count, shown.character_count) == (len(text.split()), len(text))
    assert (shown.constitution, shown.placement, shown.warnings) == (None, Placement.SYSTEM, [])
    assert shown.messages == [shown.system_message]
    assert_error(alice.get(OWN), 404)


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/yaml", "principles:\n- Be brief.\n"),
        ("text/markdown", "1. Be brief.\n"),
        ("application/json", '["Be brief."]'),
    ],
)
def test_a_preview_takes_every_format(alice: TestClient, media_type: str, body: str) -> None:
    shown = preview_of(alice.post(f"{OWN}/preview", content=body, headers={"content-type": media_type}))
    assert shown.system_message is not None
    assert "1. Be brief." in shown.system_message["content"]


def test_a_preview_without_a_constitution_is_of_the_active_one(alice: TestClient) -> None:
    tag = alice.put(OWN, json=BRIEF).headers["x-preamble-constitution"]
    shown = [
        preview_of(alice.post(f"{OWN}/preview")),
        preview_of(alice.post(f"{OWN}/preview", json={})),
        preview_of(alice.post(f"{OWN}/preview", json={"messages": []})),
    ]
    assert [one.constitution for one in shown] == [tag, tag, tag]
    assert shown[0] == shown[1] == shown[2]


def test_a_preview_puts_it_into_the_messages_given(alice: TestClient) -> None:
    alice.put(OWN, json=POLITE)
    messages = [{"role": "system", "content": "You sell tea."}, {"role": "user", "content": "Hello!"}]
    of_active = preview_of(alice.post(f"{OWN}/preview", json={"messages": messages}))
    assert of_active.system_message is not None
    assert "Never guess." in of_active.system_message["content"]
    assert of_active.system_message["content"].endswith("You sell tea.")
    assert of_active.messages == [of_active.system_message, messages[1]]
    assert of_active.token_count == len(of_active.system_message["content"].split())
    of_given = preview_of(alice.post(f"{OWN}/preview", json={"constitution": BRIEF, "messages": messages}))
    assert of_given.system_message is not None
    assert "Be brief." in of_given.system_message["content"]
    assert of_given.constitution is None


def test_a_preview_counts_the_text_of_content_parts(alice: TestClient) -> None:
    parts = [{"type": "text", "text": "You sell tea."}]
    shown = preview_of(
        alice.post(f"{OWN}/preview", json={"constitution": BRIEF, "messages": [{"role": "system", "content": parts}]})
    )
    assert shown.system_message is not None
    text = "".join(part["text"] for part in shown.system_message["content"])
    assert text.endswith("You sell tea.")
    assert (shown.token_count, shown.character_count) == (len(text.split()), len(text))


def test_a_preview_for_a_model_without_system_role_says_so(alice: TestClient, upstream: Upstream) -> None:
    upstream.placement = Placement.FIRST_USER
    shown = preview_of(
        alice.post(f"{OWN}/preview", json={"constitution": BRIEF, "messages": [{"role": "user", "content": "Hello!"}]})
    )
    assert shown.system_message is not None
    assert shown.system_message["role"] == "user"
    assert any("no system role" in warning for warning in shown.warnings)


@pytest.mark.parametrize("how", ["reachable", "tokenizes"])
def test_a_preview_without_the_upstream_lacks_only_the_token_count(
    alice: TestClient, upstream: Upstream, how: str
) -> None:
    setattr(upstream, how, False)
    shown = preview_of(alice.post(f"{OWN}/preview", json=BRIEF))
    assert shown.token_count is None
    assert shown.character_count > 0
    assert any("count tokens" in warning for warning in shown.warnings)


def test_a_preview_warns_of_a_constitution_that_fills_the_context(alice: TestClient, upstream: Upstream) -> None:
    upstream.context_tokens = 40
    shown = preview_of(alice.post(f"{OWN}/preview", json=BRIEF))
    assert any("of the model's 40 tokens" in warning for warning in shown.warnings)


def test_a_preview_of_principles_without_weight_sends_nothing(alice: TestClient) -> None:
    shown = preview_of(alice.post(f"{OWN}/preview", json={"principles": [{"text": "Be brief.", "weight": 0}]}))
    assert (shown.system_message, shown.token_count, shown.messages) == (None, 0, [])
    assert shown.warnings


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"constitution": {"principles": [""]}}, "constitution.principles[0].text"),
        ({"constitution": 7}, "constitution"),
        ({"constitution": BRIEF, "messages": 7}, "messages"),
        ({"constitution": BRIEF, "messages": ["x"]}, "messages[0]"),
        ({"constitution": BRIEF, "messages": [{"content": "x"}]}, "messages[0].role"),
        ({"message": []}, "message"),
    ],
)
def test_a_wrong_preview_is_400_and_names_the_place(alice: TestClient, body: dict[str, Any], param: str) -> None:
    assert_error(alice.post(f"{OWN}/preview", json=body), 400, param=param)


def test_a_preview_in_another_content_type_is_415(alice: TestClient) -> None:
    assert_error(alice.post(f"{OWN}/preview", content="x", headers={"content-type": "text/plain"}), 415)


# Whose


def test_without_a_key_everything_is_401(anonymous: TestClient) -> None:
    for path in (OWN, f"{OWN}/versions", "/v1/users/alice/constitution"):
        assert_error(anonymous.get(path), 401, code="invalid_api_key")
    assert_error(anonymous.put(OWN, json=BRIEF), 401)


def test_users_have_their_own(alice: TestClient, bob: TestClient) -> None:
    alice.put(OWN, json=BRIEF)
    assert_error(bob.get(OWN), 404)


def test_another_users_is_404_whether_it_exists_or_not(alice: TestClient, bob: TestClient) -> None:
    alice.put(OWN, json=BRIEF)
    paths = ("", "/versions", "/versions/1", "/versions/1/diff/1")
    for path in paths:
        exists = assert_error(bob.get(f"/v1/users/alice/constitution{path}"), 404)
        assert exists == assert_error(bob.get(f"/v1/users/nobody/constitution{path}"), 404)
    assert_error(bob.put("/v1/users/alice/constitution", json=POLITE), 404)
    assert_error(bob.delete("/v1/users/alice/constitution"), 404)
    assert_error(bob.post("/v1/users/alice/constitution/versions/1/activate"), 404)
    assert_error(bob.post("/v1/users/alice/constitution/preview"), 404)
    assert alice.get(OWN).json()["principles"] == BRIEF["principles"]


def test_a_user_may_use_their_own_name(alice: TestClient) -> None:
    assert alice.put("/v1/users/alice/constitution", json=BRIEF).status_code == 201
    assert alice.get(OWN).json() == alice.get("/v1/users/alice/constitution").json()


def test_an_admin_has_every_route_for_every_user(admin: TestClient, alice: TestClient) -> None:
    path = "/v1/users/alice/constitution"
    assert admin.put(path, json=BRIEF).json()["user"] == "alice"
    assert admin.put(path, json=POLITE).status_code == 201
    assert admin.get(f"{path}/versions").json()["data"][0]["version"] == 2
    assert admin.get(f"{path}/versions/1/diff/2").status_code == 200
    assert admin.post(f"{path}/versions/1/activate").status_code == 200
    assert preview_of(admin.post(f"{path}/preview")).constitution == alice.get(OWN).headers["x-preamble-constitution"]
    assert admin.delete(path).status_code == 204
    assert_error(alice.get(OWN), 404)


def test_an_admin_naming_no_proper_user_gets_400(admin: TestClient) -> None:
    assert_error(admin.get("/v1/users/a%20b/constitution"), 400, param="user", code="invalid_user")


def test_a_key_that_may_name_sub_users_keeps_theirs(anonymous: TestClient, store: Store) -> None:
    acme = client_of(anonymous, store.create_key("acme", may_name_sub_users=True)[1])
    for sub, body in (("alice", BRIEF), ("bob", POLITE)):
        assert acme.put(OWN, json=body, headers={"x-preamble-user": sub}).json()["user"] == f"acme:{sub}"
    assert acme.get("/v1/users/acme:bob/constitution").json()["principles"][0] == {"text": "Be polite."}
    assert_error(acme.get(OWN), 404)
    assert_error(acme.get("/v1/users/other:bob/constitution"), 404)


def test_naming_a_sub_user_without_that_right_is_403(alice: TestClient) -> None:
    assert_error(alice.get(OWN, headers={"x-preamble-user": "bob"}), 403, param="x-preamble-user")


def test_a_key_revoked_by_another_process_is_refused_at_once(anonymous: TestClient, store: Store, file: Path) -> None:
    key, token = store.create_key("alice")
    alice = client_of(anonymous, token)
    assert alice.put(OWN, json=BRIEF).status_code == 201
    with Store.open(f"sqlite:///{file}") as elsewhere:
        elsewhere.revoke_key(key.id)
    assert_error(alice.get(OWN), 401)


def test_without_keys_the_operator_administers_everybody(store: Store, upstream: Upstream) -> None:
    with TestClient(build_app(store, upstream, auth_required=False)) as local:
        assert local.put(OWN, json=BRIEF).json()["user"] == "default"
        assert local.put(OWN, json=BRIEF, headers={"x-preamble-user": "alice"}).json()["user"] == "alice"
        assert local.get("/v1/users/alice/constitution").status_code == 200


# Failures


def test_a_store_that_fails_is_503_with_retry_after(tmp_path: Path, upstream: Upstream) -> None:
    with (
        Store.open(f"sqlite:///{tmp_path}/preamble.db") as store,
        TestClient(build_app(store, upstream, auth_required=False)) as client,
    ):
        client.put(OWN, json=BRIEF)
        with sqlite3.connect(tmp_path / "preamble.db") as connection:
            connection.execute("DROP TABLE constitution_versions")
        connection.close()
        for response in (client.get(OWN), client.put(OWN, json=POLITE)):
            assert_error(response, 503, code="store_unavailable")
            assert response.headers["retry-after"] == "1"


# OpenAPI


def test_the_openapi_document_describes_every_route_and_refers_to_nothing_missing(app: FastAPI) -> None:
    document = app.openapi()
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for name in (part.split('"')[0] for part in text.split("#/components/schemas/")[1:]):
        assert name in schemas
    own = {
        path.removeprefix(OWN): sorted(methods) for path, methods in document["paths"].items() if path.startswith(OWN)
    }
    named = "/v1/users/{user}/constitution"
    others = {
        path.removeprefix(named): sorted(methods)
        for path, methods in document["paths"].items()
        if path.startswith(named)
    }
    assert own == others
    assert own[""] == ["delete", "get", "put"]
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert len(operation["description"]) > 40
        assert "422" not in operation["responses"]
        assert {"401", "503"} <= operation["responses"].keys()
        assert operation["security"]


def test_the_examples_in_the_openapi_document_are_accepted(app: FastAPI, alice: TestClient) -> None:
    content = app.openapi()["paths"][OWN]["put"]["requestBody"]["content"]
    assert alice.put(OWN, json=content["application/json"]["schema"]["examples"][0]).status_code == 201
    for media_type in ("application/yaml", "text/markdown"):
        assert put_text(alice, media_type, content[media_type]["example"]).status_code in {200, 201}
    preview = app.openapi()["paths"][f"{OWN}/preview"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    preview_of(alice.post(f"{OWN}/preview", json=preview["anyOf"][0]["examples"][0]))
