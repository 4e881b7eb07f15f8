"""Default policies in the store: what is kept, when a write goes through, what the workers are told."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from constitutions.constitution import Constitution, Principle
from server import migrations
from server.errors import BadRequest, NotFound, PreconditionFailed
from server.records import UserPolicy
from server.store import Store
from tests.server.store_processes import put_policies_until_killed

FOUR, EIGHT = '{"n_max":4}', '{"n_max":8}'


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'preamble.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def test_what_was_written_is_there_after_reopening(url: str) -> None:
    with Store.open(url) as store:
        written, changed = store.put_policy("alice", FOUR)
        assert changed
    with Store.open(url) as store:
        assert store.policy("alice") == store.find_policy("alice") == written
        assert (written.version, written.content, written.user) == (1, FOUR, "alice")
        assert written.etag == f'"{written.id}@1"'


def test_a_change_raises_the_version_and_the_same_again_changes_nothing(store: Store) -> None:
    first, _ = store.put_policy("alice", FOUR)
    second, changed = store.put_policy("alice", EIGHT)
    assert (second.id, second.version, changed) == (first.id, 2, True)
    before = store.signal.current()
    assert store.put_policy("alice", EIGHT) == (second, False)
    assert store.signal.current() == before


def test_a_later_policy_after_a_deletion_has_another_id(store: Store) -> None:
    first, _ = store.put_policy("alice", FOUR)
    store.delete_policy("alice")
    assert store.find_policy("alice") is None
    again, _ = store.put_policy("alice", FOUR)
    assert again.version == 1
    assert again.id != first.id


def test_what_is_not_there_is_not_found_and_users_do_not_see_each_other(store: Store) -> None:
    store.put_policy("bob", FOUR)
    for ask in (store.policy, store.delete_policy):
        with pytest.raises(NotFound) as raised:
            ask("alice")
        assert raised.value.code == "policy_not_found"
    assert {policy.user for policy in store.policies()} == {"bob"}


def test_a_policy_needs_a_proper_user(store: Store) -> None:
    with pytest.raises(BadRequest, match="not a user's name"):
        store.put_policy("a b", FOUR)


def test_a_write_with_a_stale_etag_is_refused_and_changes_nothing(store: Store) -> None:
    first, _ = store.put_policy("alice", FOUR)
    second, _ = store.put_policy("alice", EIGHT, if_match=first.etag)
    for write in (
        lambda: store.put_policy("alice", FOUR, if_match=first.etag),
        lambda: store.delete_policy("alice", if_match=first.etag),
        lambda: store.put_policy("alice", FOUR, if_none_match="*"),
        lambda: store.put_policy("bob", FOUR, if_match="*"),
    ):
        with pytest.raises(PreconditionFailed):
            write()
    assert store.policies() == (second,)
    store.delete_policy("alice", if_match=second.etag)
    assert store.put_policy("alice", FOUR, if_none_match="*")[1]


def test_a_change_of_a_policy_names_its_user_and_nothing_else(store: Store) -> None:
    before = store.signal.current()
    store.put_policy("alice", FOUR)
    changes = store.changes_since(before)
    assert changes.policies == {"alice"}
    assert not changes.users | changes.keys
    assert changes.upto == store.signal.current() == before + 1


def test_another_store_on_the_same_file_is_told_before_the_write_returns(url: str) -> None:
    with Store.open(url) as writer, Store.open(url) as reader:
        writer.put_policy("alice", FOUR)
        assert reader.changes_since(reader.signal.current() - 1).policies == {"alice"}
        writer.delete_policy("alice")
        assert reader.signal.current() == 2


@settings(max_examples=30)  # each opens a store
@given(
    steps=st.lists(st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("ab"), st.integers(1, 3)), max_size=12)
)
def test_any_sequence_of_writes_leaves_what_a_dictionary_would_hold(steps: list[tuple[str, str, int]]) -> None:
    held: dict[str, tuple[str, int]] = {}
    with Store.open("sqlite://") as store:
        for action, user, number in steps:
            content = f'{{"n_max":{number}}}'
            if action == "put":
                store.put_policy(user, content)
                before, version = held.get(user, ("", 0))
                held[user] = (content, version if before == content else version + 1)
            elif user in held:
                store.delete_policy(user)
                del held[user]
        assert {policy.user: (policy.content, policy.version) for policy in store.policies()} == held


def test_every_acknowledged_policy_survives_kill_9(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    writer = context.Process(target=put_policies_until_killed, args=(url, sender))
    writer.start()
    sender.close()
    acknowledged = receiver.recv()
    writer.kill()
    try:
        while True:
            acknowledged = receiver.recv()
    except (EOFError, OSError):
        receiver.close()
    writer.join()
    with Store.open(url) as store:
        policy = store.policy("alice")
        assert policy.version in {acknowledged, acknowledged + 1}  # one may have been done and not acknowledged
        assert policy.content == f'{{"n_max":{policy.version}}}'
        assert store.signal.current() == policy.version


def test_a_store_of_the_first_revision_is_upgraded_and_keeps_what_it_holds(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
        for statement in (
            "INSERT INTO api_keys VALUES ('abcdefgh', x'00', 'alice', 'phone', 0, 0, 5, NULL)",
            "INSERT INTO constitutions VALUES ('con_a', 'alice', 1, 6)",
            "INSERT INTO constitution_versions VALUES ('con_a', 1, '{\"principles\": [\"Be brief.\"]}', 7)",
            "INSERT INTO changes VALUES (1, 'key', 'abcdefgh'), (2, 'constitution', 'alice')",
        ):
            connection.exec_driver_sql(statement)
        assert "user_policies" not in sa.inspect(connection).get_table_names()
    engine.dispose()
    with Store.open(url) as store:
        assert store.active("alice").constitution == Constitution((Principle("Be brief."),))
        key = store.key("abcdefgh")
        assert key is not None
        assert (key.label, key.created_at) == ("phone", 5)
        assert (store.policies(), store.signal.current()) == ((), 2)
        policy, _ = store.put_policy("alice", FOUR)
        assert store.changes_since(2).policies == {"alice"}
    with Store.open(url) as store:
        assert isinstance(policy, UserPolicy)
        assert store.policy("alice") == policy
