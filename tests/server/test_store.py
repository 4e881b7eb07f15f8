from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st

from constitutions.constitution import Constitution, Dimension, Principle
from server.database import Database
from server.errors import BadRequest, NotFound, PreconditionFailed, StoreUnavailable
from server.records import matches_etag
from server.schema import metadata
from server.store import Store
from server.tokens import digest_of
from tests.server.store_processes import (
    constitution,
    open_and_put,
    put_if_match,
    put_on_a_full_disk,
    put_until_killed,
)

BRIEF, POLITE, HONEST = constitution("Be brief."), constitution("Be polite."), constitution("Be honest.")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "preamble.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def spawn() -> Iterator[Callable[..., SpawnProcess]]:
    started: list[SpawnProcess] = []

    def start(target: Callable[..., None], *arguments: object) -> SpawnProcess:
        process = context().Process(target=target, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
        process.close()


def context() -> SpawnContext:
    return multiprocessing.get_context("spawn")


# Opening


def test_opening_creates_what_is_missing_for_the_owner_only(store: Store, file: Path) -> None:
    store.put("alice", BRIEF)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}


def test_migrations_give_the_schema_that_the_code_declares(store: Store, url: str) -> None:
    with sa.create_engine(url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_every_connection_waits_for_the_disk_and_checks_references(url: str) -> None:
    with Database(url) as database, database.read() as first, database.read() as second:
        for connection in (first, second):
            pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
            assert values == ["wal", 2, 1, 5000]


def test_a_path_may_contain_a_percent_sign(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/100%/preamble.db") as store:
        store.ping()


def test_what_was_written_is_there_after_reopening(url: str) -> None:
    rich = Constitution((Principle("Be brief.", Dimension.STYLE, 2.5, "for the phone"), Principle("Be kind. 🙂")))
    with Store.open(url) as store:
        written, _ = store.put("alice", rich)
        key, _ = store.create_key("alice", label="phone")
    with Store.open(url) as store:
        assert store.active("alice") == written
        assert store.active("alice").constitution == rich
        assert store.key(key.id) == key


def test_several_processes_may_open_a_new_store_at_once(url: str, spawn: Callable[..., SpawnProcess]) -> None:
    start = context().Barrier(3)
    pipes = [context().Pipe(duplex=False) for _ in range(3)]
    for number, (_, sender) in enumerate(pipes):
        spawn(open_and_put, url, f"user{number}", start, sender)
    assert [receiver.recv() for receiver, _ in pipes] == [1, 1, 1]
    with Store.open(url) as store:
        assert [store.active(f"user{number}").version for number in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("bad", ["nonsense", "nosuch://x/y", "mysql://localhost/x"])
def test_a_url_that_cannot_be_used_is_refused_with_the_setting_to_change(bad: str) -> None:
    with pytest.raises(StoreUnavailable, match="database_url"):
        Store.open(bad)


def test_a_database_of_a_newer_version_is_left_alone(url: str, file: Path) -> None:
    Store.open(url).close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreUnavailable, match="newer version"):
        Store.open(url)


# Constitutions


def test_the_first_put_creates_version_1_and_the_next_version_2(store: Store) -> None:
    first, first_is_new = store.put("alice", BRIEF)
    second, second_is_new = store.put("alice", POLITE)
    assert first_is_new
    assert second_is_new
    assert (first.version, second.version) == (1, 2)
    assert first.id == second.id
    assert re.fullmatch(r"con_[a-z2-7]{16}", first.id)
    assert second.etag == f'"{first.id}@2"'
    assert store.active("alice") == second


def test_putting_what_is_active_already_changes_nothing(store: Store) -> None:
    written, _ = store.put("alice", BRIEF)
    before = store.signal.current()
    assert store.put("alice", BRIEF) == (written, False)
    assert store.signal.current() == before


def test_going_back_to_an_earlier_text_is_a_new_version(store: Store) -> None:
    store.put("alice", BRIEF)
    store.put("alice", POLITE)
    version, created = store.put("alice", BRIEF)
    assert (version.version, created) == (3, True)


def test_activating_an_earlier_version_makes_it_the_only_active_one(store: Store) -> None:
    store.put("alice", BRIEF)
    store.put("alice", POLITE)
    assert store.activate("alice", 1).active
    assert store.active("alice").constitution == BRIEF
    assert [(version.version, version.active) for version in store.versions("alice")[0]] == [(2, False), (1, True)]


def test_a_put_after_going_back_takes_the_next_unused_number(store: Store) -> None:
    store.put("alice", BRIEF)
    store.put("alice", POLITE)
    store.activate("alice", 1)
    assert store.put("alice", HONEST)[0].version == 3


def test_deleting_removes_all_versions_and_a_later_put_starts_anew(store: Store) -> None:
    first, _ = store.put("alice", BRIEF)
    store.put("alice", POLITE)
    store.delete("alice")
    assert store.find_active("alice") is None
    again, created = store.put("alice", BRIEF)
    assert created
    assert again.version == 1
    assert again.id != first.id
    assert [version.version for version in store.versions("alice")[0]] == [1]


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for ask in (store.active, store.delete, store.versions):
        with pytest.raises(NotFound, match="PUT one first"):
            ask("alice")
    store.put("alice", BRIEF)
    for number in (2, 0, -1, 2**31, 2**80):
        with pytest.raises(NotFound, match="no version"):
            store.version("alice", number)
        with pytest.raises(NotFound, match="no version"):
            store.activate("alice", number)


def test_users_do_not_see_each_other(store: Store) -> None:
    store.put("alice", BRIEF)
    assert store.find_active("bob") is None
    assert store.find_active("ALICE") is None
    store.put("bob", POLITE)
    store.delete("alice")
    assert store.active("bob").constitution == POLITE


def test_versions_come_newest_first_in_pages(store: Store) -> None:
    for number in range(1, 6):
        store.put("alice", constitution(f"Be number {number}."))
    first, more = store.versions("alice", limit=2)
    rest, no_more = store.versions("alice", limit=3, before=4)
    assert ([version.version for version in first], more) == ([5, 4], True)
    assert ([version.version for version in rest], no_more) == ([3, 2, 1], False)


@pytest.mark.parametrize("bad", ["", "a b", "a" * 65, "a:b:c", ":b", "a:", "ä", "a\n"])
def test_a_constitution_needs_a_proper_user(store: Store, bad: str) -> None:
    with pytest.raises(BadRequest, match="not a user's name"):
        store.put(bad, BRIEF)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "activate", "delete"]), st.sampled_from(["a", "b"]), st.integers(0, 4)),
        max_size=12,
    )
)
def test_any_sequence_of_writes_leaves_what_a_dictionary_would_hold(steps: list[tuple[str, str, int]]) -> None:
    texts: dict[str, list[int]] = {}
    active: dict[str, int] = {}
    with Store.open("sqlite://") as store:
        for action, user, number in steps:
            if action == "put":
                store.put(user, constitution(f"Be number {number}."))
                if user not in active or texts[user][active[user] - 1] != number:
                    texts.setdefault(user, []).append(number)
                    active[user] = len(texts[user])
            elif action == "activate" and 1 <= number <= len(texts.get(user, [])):
                store.activate(user, number)
                active[user] = number
            elif action == "delete" and user in active:
                store.delete(user)
                del texts[user], active[user]
        for user in ("a", "b"):
            found = store.find_active(user)
            assert (found and found.version) == active.get(user)
            if found is not None:
                versions = store.versions(user, limit=100)[0]
                assert [version.version for version in versions if version.active] == [active[user]]
                assert [version.constitution for version in reversed(versions)] == [
                    constitution(f"Be number {text}.") for text in texts[user]
                ]


# Conditional writes


def test_a_write_with_the_active_etag_goes_through(store: Store) -> None:
    first, _ = store.put("alice", BRIEF)
    second, _ = store.put("alice", POLITE, if_match=first.etag)
    store.activate("alice", 1, if_match=f'"other", {second.etag}')
    store.delete("alice", if_match=first.tag)


def test_a_write_with_a_stale_etag_is_refused_and_changes_nothing(store: Store) -> None:
    first, _ = store.put("alice", BRIEF)
    second, _ = store.put("alice", POLITE)
    writes: list[Callable[[], object]] = [
        lambda: store.put("alice", HONEST, if_match=first.etag),
        lambda: store.put("alice", POLITE, if_match=first.etag),
        lambda: store.activate("alice", 1, if_match=first.etag),
        lambda: store.delete("alice", if_match=first.etag),
    ]
    for write in writes:
        with pytest.raises(PreconditionFailed, match=re.escape(second.tag)):
            write()
    assert store.versions("alice")[0][0] == second


def test_if_match_is_refused_where_there_is_nothing(store: Store) -> None:
    for if_match in ("*", '"con_x@1"'):
        with pytest.raises(PreconditionFailed, match="there is none"):
            store.put("alice", BRIEF, if_match=if_match)
    assert store.find_active("alice") is None


def test_a_star_matches_whatever_there_is(store: Store) -> None:
    store.put("alice", BRIEF)
    assert store.put("alice", POLITE, if_match="*")[1]


def test_if_none_match_star_only_creates(store: Store) -> None:
    assert store.put("alice", BRIEF, if_none_match="*")[1]
    with pytest.raises(PreconditionFailed, match="already there"):
        store.put("alice", POLITE, if_none_match="*")
    assert store.active("alice").constitution == BRIEF


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ('"a@1"', True),
        ("a@1", True),
        ('W/"a@1"', True),
        ('"b@1" , "a@1"', True),
        ("*", True),
        ('"a@11"', False),
        ("", False),
    ],
)
def test_an_etag_header_is_read_as_a_list(header: str, matches: bool) -> None:
    assert matches_etag(header, "a@1") is matches
    assert not matches_etag(header, None)


def test_of_two_threads_with_the_same_if_match_exactly_one_wins(url: str) -> None:
    with Store.open(url) as one, Store.open(url) as other:
        etag = one.put("alice", BRIEF)[0].etag
        for attempt in range(10):
            start = threading.Barrier(2)
            wins: list[str] = []

            def write(store: Store, name: str, etag: str = etag, start: threading.Barrier = start) -> None:
                start.wait()
                with contextlib.suppress(PreconditionFailed):
                    wins.append(store.put("alice", constitution(name), if_match=etag)[0].etag)  # noqa: B023 - joined below

            threads = [
                threading.Thread(target=write, args=(store, f"{name} {attempt}"))
                for store, name in ((one, "one"), (other, "other"))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(wins) == 1
            (etag,) = wins


def test_of_two_processes_with_the_same_if_match_exactly_one_wins(
    store: Store, url: str, spawn: Callable[..., SpawnProcess]
) -> None:
    etag = store.put("alice", BRIEF)[0].etag
    start = context().Barrier(2)
    pipes = [context().Pipe(duplex=False) for _ in range(2)]
    for number, (_, sender) in enumerate(pipes):
        spawn(put_if_match, url, etag, f"Be number {number}.", start, sender)
    assert sorted(receiver.recv() for receiver, _ in pipes) == [False, True]
    assert store.active("alice").version == 2


def test_no_concurrent_write_is_lost(url: str) -> None:
    with Store.open(url) as one, Store.open(url) as other:

        def write(store: Store, name: str) -> None:
            for number in range(20):
                store.put("alice", constitution(f"{name} {number}"))

        threads = [
            threading.Thread(target=write, args=(store, name))
            for store, name in ((one, "a"), (one, "b"), (other, "c"), (other, "d"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        versions = one.versions("alice", limit=100)[0]
    assert [version.version for version in reversed(versions)] == list(range(1, 81))
    texts = {version.constitution.principles[0].text for version in versions}
    assert texts == {f"{name} {number}" for name, number in itertools.product("abcd", range(20))}


# API keys


def test_a_new_key_is_kept_without_its_secret(store: Store, file: Path) -> None:
    key, token = store.create_key("acme", label="billing", may_name_sub_users=True)
    assert re.fullmatch(r"pre_[a-z2-7]{8}_[A-Za-z0-9_-]{43}", token)
    assert key.digest == digest_of(token.encode())
    assert (key.user, key.label, key.admin, key.may_name_sub_users) == ("acme", "billing", False, True)
    kept = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert key.digest in kept
    assert token[13:].encode() not in kept


def test_no_two_keys_are_the_same(store: Store) -> None:
    made = [store.create_key("acme") for _ in range(20)]
    assert len({key.id for key, _ in made}) == len({token for _, token in made}) == 20


def test_an_id_that_is_taken_is_not_given_again(url: str) -> None:
    bits = itertools.chain([b"A" * 5, b"S" * 32, b"A" * 5, b"B" * 5], itertools.repeat(b"T" * 32))
    with Database(url) as database:
        store = Store(database, random_bytes=lambda _: next(bits))
        first, second = store.create_key("acme")[0], store.create_key("acme")[0]
    assert first.id != second.id


def test_a_revoked_key_stays_listed_with_the_time_of_its_first_revocation(url: str) -> None:
    times = itertools.count(1000)
    with Database(url) as database:
        store = Store(database, clock=lambda: next(times))
        key, _ = store.create_key("acme")
        other, _ = store.create_key("acme")
        revoked = store.revoke_key(key.id)
        assert (revoked.created_at, revoked.revoked_at) == (1000, 1002)
        assert store.revoke_key(key.id) == revoked
        assert store.keys() == (other, revoked)
        assert store.keys(live_only=True) == (other,)


def test_revoking_an_unknown_key_says_so(store: Store) -> None:
    with pytest.raises(NotFound, match="no API key"):
        store.revoke_key("nonesuch")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"user": "a b"}, "user"),
        ({"user": "acme", "label": "x" * 201}, "label"),
        ({"user": "acme:alice", "may_name_sub_users": True}, "may_name_sub_users"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(store: Store, options: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        store.create_key(**options)
    assert refused.value.param == param
    assert store.keys() == ()


# Changes


def test_changes_name_what_was_written_and_nothing_else(store: Store) -> None:
    store.put("alice", BRIEF)
    before = store.signal.current()
    store.put("bob", BRIEF)
    key, _ = store.create_key("acme")
    changes = store.changes_since(before)
    assert changes.users == {"bob"}
    assert changes.keys == {key.id}
    assert not changes.everything
    assert changes.upto == store.signal.current() == before + 2
    assert store.changes_since(changes.upto).users == frozenset()


def test_a_reader_that_has_read_nothing_is_told_that_everything_changed(store: Store) -> None:
    assert store.changes_since(-1).everything


def test_old_changes_are_dropped_and_a_reader_far_behind_is_told_so(store: Store, file: Path) -> None:
    with sqlite3.connect(file) as connection:
        rows = ((number, "constitution", "old") for number in range(1, 10_999 + 1))
        connection.executemany("INSERT INTO changes VALUES (?, ?, ?)", rows)
    connection.close()
    store.put("alice", BRIEF)  # change 11 000, which prunes
    assert store.changes_since(999).everything
    within = store.changes_since(1000)
    assert not within.everything
    assert within.users == {"old", "alice"}


def test_another_store_on_the_same_file_is_told_before_the_write_returns(url: str) -> None:
    with Store.open(url) as writer, Store.open(url) as reader:
        for number in range(1, 6):
            writer.put("alice", constitution(f"Be number {number}."))
            assert reader.signal.current() == number


def test_a_write_whose_writer_died_before_telling_is_told_at_the_next_opening(url: str, file: Path) -> None:
    with Store.open(url) as store:
        store.put("alice", BRIEF)
    file.with_name("preamble.db.generation").unlink()
    with Store.open(url) as store:
        assert store.signal.current() == 1


def test_writes_after_an_older_database_was_restored_are_seen(url: str, file: Path) -> None:
    with Store.open(url) as store:
        store.put("alice", BRIEF)
    backup = file.read_bytes()
    with Store.open(url) as store:
        for number in range(5):
            store.put("alice", constitution(f"Be number {number}."))
        seen = store.signal.current()
    file.write_bytes(backup)
    with Store.open(url) as store:
        assert store.signal.current() > seen
        assert store.changes_since(seen).everything
        after = store.signal.current()
        store.put("bob", BRIEF)
        assert store.changes_since(after).users == {"bob"}


# Failures


def test_every_acknowledged_write_survives_kill_9(url: str, spawn: Callable[..., SpawnProcess]) -> None:
    acknowledged = 0
    for round_number in range(4):
        receiver, sender = context().Pipe(duplex=False)
        writer = spawn(put_until_killed, url, sender)
        sender.close()
        first = receiver.recv()
        assert first in {acknowledged + 1, acknowledged + 2}  # one write may have been done and not acknowledged
        time.sleep(0.03 * round_number)
        writer.kill()
        acknowledged = first
        try:
            while True:
                acknowledged = receiver.recv()
        except (EOFError, OSError):
            receiver.close()
        writer.join()
        with Store.open(url) as store:
            version = store.active("alice").version
            assert version in {acknowledged, acknowledged + 1}
            texts = [store.version("alice", number).constitution for number in range(1, version + 1)]
            assert texts == [constitution(f"Be number {number}.") for number in range(1, version + 1)]
            assert store.signal.current() == version
    assert acknowledged > 4


def test_a_full_disk_refuses_the_write_whole_and_the_next_one_works(
    url: str, spawn: Callable[..., SpawnProcess]
) -> None:
    receiver, sender = context().Pipe(duplex=False)
    spawn(put_on_a_full_disk, url, sender)
    assert "full" in receiver.recv()  # the write
    assert "full" in receiver.recv()  # the ping
    assert receiver.recv() == [1]  # what is there
    assert receiver.recv() == 2  # the next write


def test_a_store_that_somebody_else_has_locked_is_unavailable_until_it_is_free(url: str, file: Path) -> None:
    with Database(url, busy_timeout_s=0.05) as database:
        store = Store(database)
        store.put("alice", BRIEF)
        locker = sqlite3.connect(file, isolation_level=None)
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            store.put("alice", POLITE)
        with pytest.raises(StoreUnavailable, match="locked"):
            store.ping()
        assert store.active("alice").constitution == BRIEF  # reading goes on
        locker.execute("ROLLBACK")
        locker.close()
        assert store.put("alice", POLITE)[0].version == 2


def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(url: str, file: Path) -> None:
    with Store.open(url) as store:
        store.put("alice", BRIEF)
    with Store.open(f"sqlite:///file:{file}?mode=ro&uri=true") as store:
        assert store.active("alice").constitution == BRIEF
        for write in (store.ping, lambda: store.put("alice", POLITE), lambda: store.create_key("acme")):
            with pytest.raises(StoreUnavailable, match="read-only"):
                write()


def test_a_file_that_is_no_database_is_refused(url: str, file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"This is not a database. " * 1000)
    with pytest.raises(StoreUnavailable, match="restore"):
        Store.open(url)


def test_a_damaged_database_is_unavailable(url: str, file: Path) -> None:
    with Store.open(url) as store:
        for number in range(50):
            store.put(f"user{number}", constitution("Be brief. " * 100))
    size = file.stat().st_size
    with file.open("r+b") as damaged:
        damaged.seek(4096)  # the first page holds the schema
        damaged.write(b"\xff" * (size - 4096))
    with pytest.raises(StoreUnavailable, match="damaged"), Store.open(url) as store:
        store.versions("user7")


def test_a_damaged_constitution_is_named_and_the_others_stay_readable(store: Store, file: Path) -> None:
    version, _ = store.put("alice", BRIEF)
    store.put("bob", POLITE)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE constitution_versions SET content = '{' WHERE constitution_id = ?", (version.id,))
    connection.close()
    with pytest.raises(StoreUnavailable, match=re.escape(version.tag)):
        store.active("alice")
    assert store.active("bob").constitution == POLITE


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreUnavailable, match="taken"):
        Store.open(f"sqlite:///{tmp_path}/taken/preamble.db")


def test_a_refused_write_leaves_the_store_usable(store: Store) -> None:
    store.put("alice", BRIEF)
    for _ in range(50):  # more than there are connections in the pool
        with pytest.raises(NotFound):
            store.activate("alice", 7)
    assert store.put("alice", POLITE)[0].version == 2
