from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import stat
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadRequest, Forbidden, StoreUnavailable, Unauthenticated
from server.identity import Identifier, Identity, Salt, load_or_create_secret
from server.names import is_user, tenant_of, user_from
from server.records import ApiKey
from server.tokens import digest_of, key_id_of

ADMIN_KEY = "an-admin-key-from-the-settings"


def token_of(key_id: str) -> str:
    return f"pre_{key_id}_{'s' * 43}"


class Keys:
    """Live keys in a dictionary, by id."""

    def __init__(self) -> None:
        self.live: dict[str, ApiKey] = {}

    def add(self, key_id: str, user: str, *, admin: bool = False, may_name_sub_users: bool = False) -> bytes:
        token = token_of(key_id).encode()
        self.live[key_id] = ApiKey(key_id, digest_of(token), user, None, admin, may_name_sub_users, 0)
        return token

    def key(self, key_id: str) -> ApiKey | None:
        return self.live.get(key_id)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def required(keys: Keys) -> Identifier:
    return Identifier(keys, auth_required=True, admin_key=ADMIN_KEY)


@pytest.fixture
def optional(keys: Keys) -> Identifier:
    return Identifier(keys, auth_required=False)


# Keys


def test_a_key_acts_as_its_user(required: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme")
    expected = Identity(user="acme", tenant="acme", admin=False, key_id="aaaaaaaa")
    for _ in range(2):
        assert required.identify(b"Bearer " + token, None, None) == expected
        assert required.identify(b"bearer  " + token, None, None) == expected
        assert required.identify(None, token, None) == expected


def test_the_key_of_a_sub_user_has_the_tenant_before_the_colon(required: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme:alice")
    identity = required.identify(None, token, None)
    assert (identity.user, identity.tenant) == ("acme:alice", "acme")


def test_an_admin_key_is_an_admin(required: Identifier, keys: Keys) -> None:
    assert required.identify(None, keys.add("aaaaaaaa", "ops", admin=True), None).admin


def test_the_admin_key_of_the_settings_needs_no_store(required: Identifier) -> None:
    identity = required.identify(b"Bearer " + ADMIN_KEY.encode(), None, None)
    assert identity == Identity(user="admin", tenant="admin", admin=True)
    assert required.identify(None, ADMIN_KEY.encode(), b"admin") == identity


def test_a_revoked_key_is_refused_even_if_it_was_just_used(required: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme")
    required.identify(None, token, None)
    keys.live.clear()
    with pytest.raises(Unauthenticated, match="unknown or has been revoked"):
        required.identify(None, token, None)


def test_a_key_whose_rights_have_changed_has_its_new_rights(required: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme", admin=True)
    assert required.identify(None, token, None).admin
    keys.add("aaaaaaaa", "acme")
    assert not required.identify(None, token, None).admin


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (None, None),
        (b"", None),
        (b"Bearer ", None),
        (b"Bearer", b""),
        (b"Basic cHJlOng=", None),
        (b"Bearer EMPTY", None),
        (b"Bearer sk-something", b"sk-something"),
        (b"Bearer pre_", None),
        (None, token_of("bbbbbbbb").encode()),
        (None, token_of("aaaaaaaa").encode()[:-1] + b"x"),
        (None, token_of("aaaaaaaa").encode() + b"s"),
        (None, b"pre_\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc_" + b"s" * 43),
        (b"Bearer " + ADMIN_KEY.encode() + b"x", None),
    ],
)
def test_without_a_valid_key_nobody_gets_in(
    required: Identifier, keys: Keys, authorization: bytes | None, api_key: bytes | None
) -> None:
    keys.add("aaaaaaaa", "acme")
    with pytest.raises(Unauthenticated) as refused:
        required.identify(authorization, api_key, None)
    assert refused.value.status == 401
    assert ("www-authenticate", "Bearer") in refused.value.headers


def test_a_key_of_ours_counts_in_either_header(required: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme")
    assert required.identify(b"Bearer sk-other", token, None).user == "acme"
    assert required.identify(b"Bearer " + token, b"sk-other", None).user == "acme"
    assert required.identify(b"Basic abc", token, None).user == "acme"


def test_the_bearer_token_counts_if_both_headers_hold_keys(required: Identifier, keys: Keys) -> None:
    one, other = keys.add("aaaaaaaa", "one"), keys.add("bbbbbbbb", "other")
    assert required.identify(b"Bearer " + one, other, None).user == "one"


@given(st.binary(max_size=80))
def test_any_bytes_for_a_token_are_refused_in_order(noise: bytes) -> None:
    keys = Keys()
    keys.add("aaaaaaaa", "acme")
    identifier = Identifier(keys, auth_required=True)
    with pytest.raises(Unauthenticated):
        identifier.identify(b"Bearer " + noise, None, None)
    with pytest.raises(Unauthenticated):
        identifier.identify(None, b"pre_aaaaaaaa_" + noise, None)


# Sub-users


@pytest.mark.parametrize("header", [b"alice", b"acme:alice"])
def test_a_key_that_may_name_sub_users_acts_as_them(required: Identifier, keys: Keys, header: bytes) -> None:
    token = keys.add("aaaaaaaa", "acme", may_name_sub_users=True)
    for _ in range(2):
        identity = required.identify(None, token, header)
        assert (identity.user, identity.tenant, identity.key_id) == ("acme:alice", "acme", "aaaaaaaa")


def test_a_key_may_name_its_own_user(required: Identifier, keys: Keys) -> None:
    plain = keys.add("aaaaaaaa", "acme")
    naming = keys.add("bbbbbbbb", "acme", may_name_sub_users=True)
    assert required.identify(None, plain, b"acme").user == "acme"
    assert required.identify(None, naming, b"acme").user == "acme"


def test_a_key_without_that_right_may_not_name_others(required: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme")
    for header in (b"alice", b"acme:alice", b"other"):
        with pytest.raises(Forbidden, match="x-preamble-user") as refused:
            required.identify(None, token, header)
        assert refused.value.param == "x-preamble-user"


def test_nobody_may_name_a_sub_user_of_somebody_else(required: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme", may_name_sub_users=True)
    for header in (b"other:alice", b"acme2:alice", b"acm:alice"):
        with pytest.raises(Forbidden, match="'acme'"):
            required.identify(None, token, header)


@pytest.mark.parametrize("header", [b"", b"a b", b"a:b:c", b":alice", b"acme:", "Zoë".encode(), b"a" * 65, b"a/b"])
def test_what_is_no_name_is_a_bad_request(
    required: Identifier, optional: Identifier, keys: Keys, header: bytes
) -> None:
    token = keys.add("aaaaaaaa", "acme", may_name_sub_users=True)
    for identifier, key in ((required, token), (optional, None)):
        with pytest.raises(BadRequest) as refused:
            identifier.identify(None, key, header)
        assert refused.value.param == "x-preamble-user"


def test_who_may_act_for_whom(required: Identifier, keys: Keys) -> None:
    plain = required.identify(None, keys.add("aaaaaaaa", "acme"), None)
    naming = required.identify(None, keys.add("bbbbbbbb", "acme", may_name_sub_users=True), b"alice")
    admin = required.identify(None, keys.add("cccccccc", "ops", admin=True), None)
    users = ("acme", "acme:alice", "acme:bob", "acme2", "acme2:alice")
    assert [user for user in users if plain.may_act_for(user)] == ["acme"]
    assert [user for user in users if naming.may_act_for(user)] == ["acme:alice", "acme:bob"]
    assert [user for user in users if admin.may_act_for(user)] == list(users)


# Without keys


def test_without_a_key_the_operator_is_an_admin_and_the_default_user(optional: Identifier) -> None:
    for authorization in (None, b"Bearer EMPTY", b"Bearer sk-anything", b"Basic abc"):
        identity = optional.identify(authorization, None, None)
        assert (identity.user, identity.tenant, identity.admin) == ("default", "default", True)


def test_without_a_key_the_header_names_any_user(optional: Identifier) -> None:
    identity = optional.identify(None, None, b"acme:alice")
    assert (identity.user, identity.tenant, identity.admin) == ("acme:alice", "acme", True)


def test_a_key_of_ours_is_checked_even_where_none_is_needed(optional: Identifier, keys: Keys) -> None:
    token = keys.add("aaaaaaaa", "acme")
    identity = optional.identify(None, token, None)
    assert (identity.user, identity.admin) == ("acme", False)
    with pytest.raises(Forbidden):
        optional.identify(None, token, b"other")
    for wrong in (token_of("bbbbbbbb").encode(), b"pre_mistyped"):
        with pytest.raises(Unauthenticated):
            optional.identify(None, wrong, None)


def test_the_body_names_the_user_if_nothing_else_did(optional: Identifier, keys: Keys) -> None:
    default = optional.identify(None, None, None)
    named = optional.with_body_user(default, "acme:alice")
    assert (named.user, named.tenant, named.admin, named.assumed) == ("acme:alice", "acme", True, False)
    header = optional.identify(None, None, b"default")
    assert optional.with_body_user(header, "alice") is header
    with_key = optional.identify(None, keys.add("aaaaaaaa", "acme"), None)
    assert optional.with_body_user(with_key, "alice") is with_key


def test_with_keys_required_the_body_names_nobody(required: Identifier, keys: Keys) -> None:
    identity = required.identify(None, keys.add("aaaaaaaa", "acme", may_name_sub_users=True), None)
    assert required.with_body_user(identity, "acme:alice") is identity


@pytest.mark.parametrize("value", [None, "", 7, 1.5, True, ["alice"], {"user": "alice"}])
def test_a_body_user_that_says_nothing_leaves_the_default(optional: Identifier, value: object) -> None:
    default = optional.identify(None, None, None)
    assert optional.with_body_user(default, value) is default


@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_any_text_in_the_body_stands_for_the_same_user_every_time(text: str) -> None:
    user = user_from(text)
    assert is_user(user)
    assert user == user_from(text)
    assert user == text or user.startswith("u-")
    assert tenant_of(user) == user.split(":")[0]


def test_different_texts_are_different_users() -> None:
    texts = ["a b", "a  b", "A b", "ä", "a:b:c", "x" * 65, "\ud800"]
    assert len({user_from(text) for text in texts}) == len(texts)


def test_a_token_has_an_id_only_in_its_own_form() -> None:
    assert key_id_of(token_of("abcdefgh").encode()) == "abcdefgh"
    for other in (b"", b"pre_", token_of("abcdefg").encode(), b"sk-" + token_of("abcdefgh").encode()[3:]):
        assert key_id_of(other) is None


# Salts and their secret


def test_a_salt_is_the_keyed_digest_of_the_tenant() -> None:
    salt = Salt(b"secret")
    expected = hmac.new(b"secret", b"preamble cache_salt\0acme", hashlib.sha256).hexdigest()
    assert salt.cache_salt("acme") == salt.cache_salt("acme") == expected


def test_tenants_and_installations_have_different_salts() -> None:
    salts = {Salt(secret).cache_salt(tenant) for secret in (b"one", b"two") for tenant in ("a", "b", "A")}
    assert len(salts) == 6


def test_salts_stay_right_when_there_are_more_tenants_than_are_remembered() -> None:
    salt = Salt(b"secret", remembered=2)
    before = [salt.cache_salt(f"tenant{number}") for number in range(5)]
    assert [salt.cache_salt(f"tenant{number}") for number in range(5)] == before


def test_the_secret_is_made_once_for_the_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    secret = load_or_create_secret(data_dir)
    assert len(bytes.fromhex(secret.decode())) == 32
    assert load_or_create_secret(data_dir) == secret
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in data_dir.iterdir()] == [("secret", 0o600)]
    assert load_or_create_secret(tmp_path / "other") != secret


def send_secret(data_dir: Path, start: Barrier, result: Connection) -> None:
    start.wait()
    result.send(load_or_create_secret(data_dir))


def test_processes_that_start_together_get_the_same_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    pipes = [context.Pipe(duplex=False) for _ in range(3)]
    processes = [context.Process(target=send_secret, args=(tmp_path, start, sender)) for _, sender in pipes]
    for process in processes:
        process.start()
    secrets = {receiver.recv() for receiver, _ in pipes}
    for process in processes:
        process.join()
    assert secrets == {load_or_create_secret(tmp_path)}


def test_a_secret_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    load_or_create_secret(tmp_path)
    (tmp_path / "secret").chmod(0o604)
    with pytest.raises(StoreUnavailable, match="chmod 600"):
        load_or_create_secret(tmp_path)


def test_a_damaged_secret_is_refused_with_the_remedy(tmp_path: Path) -> None:
    load_or_create_secret(tmp_path)
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(StoreUnavailable, match="Delete"):
        load_or_create_secret(tmp_path)


def test_a_data_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreUnavailable, match="data_dir"):
        load_or_create_secret(tmp_path / "taken")
