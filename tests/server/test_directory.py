from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from constitutions.compose import render_block
from constitutions.constitution import Constitution, Principle
from server.directory import MISS, ActiveConstitution, Directory
from server.errors import BadRequest, NotFound, StoreUnavailable
from server.generation import ChangeSignal
from server.policy import PolicyFields, to_content
from server.records import ApiKey, Changes, ConstitutionVersion, UserPolicy
from server.store import Store


def constitution(text: str) -> Constitution:
    return Constitution((Principle(text),))


BRIEF, POLITE = constitution("Be brief."), constitution("Be polite.")


class WatchedStore:
    """A real store, whose reads are counted, can be made to fail, and can be held back."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.down = False
        self.reads: Counter[str] = Counter()
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def signal(self) -> ChangeSignal:
        return self.store.signal

    def changes_since(self, number: int) -> Changes:
        self._count("changes")
        return self.store.changes_since(number)

    def key(self, key_id: str) -> ApiKey | None:
        self._count("key")
        return self.store.key(key_id)

    def keys(self, *, live_only: bool = False) -> tuple[ApiKey, ...]:
        self._count("keys")
        return self.store.keys(live_only=live_only)

    def find_active(self, user: str) -> ConstitutionVersion | None:
        self._count("active")
        found = self.store.find_active(user)
        assert self.go_on.wait(10)
        return found

    def find_policy(self, user: str) -> UserPolicy | None:
        self._count("policy")
        return self.store.find_policy(user)

    def policies(self) -> tuple[UserPolicy, ...]:
        self._count("policies")
        return self.store.policies()

    def version(self, user: str, version: int) -> ConstitutionVersion:
        self._count("version")
        return self.store.version(user, version)

    def _count(self, name: str) -> None:
        self.reads[name] += 1
        if self.down:
            raise StoreUnavailable("down")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/preamble.db") as opened:
        yield opened


@pytest.fixture
def source(store: Store) -> WatchedStore:
    return WatchedStore(store)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
async def directory(source: WatchedStore, clock: Clock, failures: list[str]) -> Directory:
    made = Directory(source, on_failure=lambda: failures.append("failed"), clock=clock)
    await made.refresh()
    return made


async def wait_for_reads(source: WatchedStore, name: str, count: int) -> None:
    async with asyncio.timeout(10):
        while source.reads[name] < count:  # noqa: ASYNC110 - counted in another thread
            await asyncio.sleep(0.002)


def is_fresh(directory: Directory) -> bool:
    return directory.fresh  # a function, so that a type checker does not take it for constant


def is_degraded(directory: Directory) -> bool:
    return directory.degraded


def tag_of(active: ActiveConstitution | None) -> str | None:
    return None if active is None else active.tag


async def test_a_new_directory_is_not_fresh_and_its_first_refresh_reads_all_live_keys(store: Store) -> None:
    live, _ = store.create_key("acme")
    revoked, _ = store.create_key("acme")
    store.revoke_key(revoked.id)
    directory = Directory(store)
    assert not is_fresh(directory)
    await directory.refresh()
    assert is_fresh(directory)
    assert directory.key(live.id) == live
    assert directory.key(revoked.id) is None
    assert directory.key("nonesuch") is None


async def test_a_constitution_is_loaded_once_and_then_served_from_memory(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    version, _ = store.put("alice", BRIEF)
    await directory.refresh()
    assert directory.lookup("alice") is MISS
    loaded = await directory.load("alice")
    expected = ActiveConstitution(version.tag, version.tag.encode(), render_block(BRIEF))
    assert loaded == directory.lookup("alice") == directory.lookup("alice") == expected
    assert source.reads["active"] == 1


async def test_that_a_user_has_no_constitution_is_remembered_too(directory: Directory, source: WatchedStore) -> None:
    assert await directory.load("nobody") is None
    assert directory.lookup("nobody") is None
    assert source.reads["active"] == 1


async def test_a_change_evicts_only_what_it_is_about(directory: Directory, store: Store) -> None:
    for user in ("alice", "bob", "carol"):
        store.put(user, BRIEF)
    await directory.refresh()
    for user in ("alice", "bob", "carol"):
        await directory.load(user)
    store.put("alice", POLITE)
    store.delete("carol")
    assert not is_fresh(directory)
    await directory.refresh()
    assert is_fresh(directory)
    assert directory.lookup("alice") is MISS
    assert directory.lookup("carol") is MISS
    assert isinstance(directory.lookup("bob"), ActiveConstitution)
    reloaded = await directory.load("alice")
    assert reloaded is not None
    assert reloaded.block == render_block(POLITE)


async def test_a_first_put_replaces_the_knowledge_that_there_is_none(directory: Directory, store: Store) -> None:
    await directory.load("alice")
    version, _ = store.put("alice", BRIEF)
    await directory.refresh()
    assert directory.lookup("alice") is MISS
    assert tag_of(await directory.load("alice")) == version.tag


async def test_keys_come_and_go_with_their_changes(directory: Directory, store: Store, source: WatchedStore) -> None:
    key, _ = store.create_key("acme")
    await directory.refresh()
    assert directory.key(key.id) == key
    store.revoke_key(key.id)
    await directory.refresh()
    assert directory.key(key.id) is None
    assert source.reads["keys"] == 1  # only the first refresh read them all


async def test_a_write_of_another_process_is_seen(directory: Directory, tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/preamble.db") as elsewhere:
        version, _ = elsewhere.put("alice", BRIEF)
    assert not is_fresh(directory)
    await directory.refresh()
    assert tag_of(await directory.load("alice")) == version.tag


async def test_a_directory_that_is_too_far_behind_forgets_everything(
    directory: Directory, store: Store, tmp_path: Path
) -> None:
    version, _ = store.put("alice", BRIEF)
    key, _ = store.create_key("acme")
    await directory.refresh()
    await directory.load("alice")
    gone, _ = store.create_key("acme")
    await directory.refresh()
    store.revoke_key(gone.id)
    (tmp_path / "preamble.db.generation").write_bytes((10_000).to_bytes(8, "little"))
    with Store.open(f"sqlite:///{tmp_path}/preamble.db"):  # finds the number ahead, as after a restored backup
        await directory.refresh()
    assert directory.lookup("alice") is MISS
    assert directory.key(gone.id) is None
    assert directory.key(key.id) == key
    assert tag_of(await directory.load("alice")) == version.tag


async def test_requests_at_the_same_time_share_one_reading(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    store.put("alice", BRIEF)
    await asyncio.gather(*(directory.refresh() for _ in range(10)))
    loaded = await asyncio.gather(*(directory.load("alice") for _ in range(10)))
    assert len({tag_of(active) for active in loaded}) == 1
    assert source.reads["changes"] == 2  # the fixture's, and one for all ten
    assert source.reads["active"] == 1


async def test_a_reading_that_a_change_overtook_is_neither_kept_nor_joined(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    old, _ = store.put("alice", BRIEF)
    await directory.refresh()
    source.go_on.clear()
    early = asyncio.create_task(directory.load("alice"))
    await wait_for_reads(source, "active", 1)
    new, _ = store.put("alice", POLITE)
    await directory.refresh()
    late = asyncio.create_task(directory.load("alice"))
    await wait_for_reads(source, "active", 2)
    source.go_on.set()
    assert tag_of(await early) == old.tag  # it began before the write
    assert tag_of(await late) == new.tag  # it began after
    kept = directory.lookup("alice")
    assert isinstance(kept, ActiveConstitution)
    assert kept.tag == new.tag


async def test_a_reading_that_a_change_overtook_leaves_the_user_to_be_loaded_again(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    store.put("alice", BRIEF)
    source.go_on.clear()
    early = asyncio.create_task(directory.load("alice"))
    await wait_for_reads(source, "active", 1)
    store.put("alice", POLITE)
    await directory.refresh()
    source.go_on.set()
    await early
    assert directory.lookup("alice") is MISS


async def test_a_waiter_that_is_cancelled_does_not_take_the_others_along(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    version, _ = store.put("alice", BRIEF)
    source.go_on.clear()
    first, second = (asyncio.create_task(directory.load("alice")) for _ in range(2))
    await wait_for_reads(source, "active", 1)
    first.cancel()
    await asyncio.sleep(0)
    source.go_on.set()
    assert tag_of(await second) == version.tag
    assert first.cancelled()


async def test_the_least_recently_used_user_goes_when_there_are_too_many(store: Store) -> None:
    directory = Directory(store, max_users=2)
    await directory.refresh()
    await directory.load("alice")
    await directory.load("bob")
    directory.lookup("alice")
    await directory.load("carol")
    assert directory.lookup("bob") is MISS
    assert directory.lookup("alice") is None
    assert directory.lookup("carol") is None


async def test_constitutions_in_memory_are_bounded_by_their_length_too(store: Store) -> None:
    long = constitution("Be brief. " * 100)
    for user in ("alice", "bob", "carol"):
        store.put(user, long)
    directory = Directory(store, max_chars=2 * len(render_block(long)))
    await directory.refresh()
    for user in ("alice", "bob", "carol"):
        await directory.load(user)
    kept = [user for user in ("alice", "bob", "carol") if directory.lookup(user) is not MISS]
    assert kept == ["bob", "carol"]
    store.put("bob", BRIEF)  # what is evicted makes room again
    await directory.refresh()
    await directory.load("bob")
    assert directory.lookup("carol") is not MISS


async def test_without_the_store_what_is_in_memory_is_served_on(
    directory: Directory, store: Store, source: WatchedStore, failures: list[str]
) -> None:
    version, _ = store.put("alice", BRIEF)
    await directory.refresh()
    await directory.load("alice")
    store.put("bob", BRIEF)
    source.down = True
    assert not is_degraded(directory)
    await directory.refresh()
    assert is_degraded(directory)
    assert failures == ["failed"]
    active = directory.lookup("alice")
    assert isinstance(active, ActiveConstitution)
    assert active.tag == version.tag
    with pytest.raises(StoreUnavailable):
        await directory.load("bob")


async def test_a_store_that_cannot_be_read_is_tried_once_a_second(
    directory: Directory, store: Store, source: WatchedStore, clock: Clock, failures: list[str]
) -> None:
    store.put("alice", BRIEF)
    source.down = True
    for _ in range(5):
        await directory.refresh()
    assert len(failures) == 1
    clock.now += 1.0
    await directory.refresh()
    assert len(failures) == 2
    source.down = False
    clock.now += 1.0
    await directory.refresh()
    assert is_fresh(directory)
    assert not is_degraded(directory)


async def test_a_change_that_cannot_be_read_stops_everything_after_a_minute(
    directory: Directory, store: Store, source: WatchedStore, clock: Clock
) -> None:
    key, _ = store.create_key("acme")
    await directory.refresh()
    store.revoke_key(key.id)
    source.down = True
    await directory.refresh()
    clock.now += 60.0
    await directory.refresh()
    assert directory.key(key.id) == key  # still taken, within the limit
    clock.now += 0.5
    with pytest.raises(StoreUnavailable, match="doctor"):
        await directory.refresh()
    source.down = False
    clock.now += 1.0
    await directory.refresh()
    assert directory.key(key.id) is None


async def test_a_directory_that_could_never_read_its_store_serves_nothing(source: WatchedStore) -> None:
    source.down = True
    directory = Directory(source)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await directory.refresh()
    assert not is_fresh(directory)


async def test_a_failed_load_is_tried_again_by_the_next_request(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    version, _ = store.put("alice", BRIEF)
    await directory.refresh()
    source.down = True
    with pytest.raises(StoreUnavailable):
        await directory.load("alice")
    source.down = False
    assert tag_of(await directory.load("alice")) == version.tag


async def test_a_named_version_is_the_one_that_is_sent(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    old, _ = store.put("alice", BRIEF)
    new, _ = store.put("alice", POLITE)
    await directory.refresh()
    await directory.load("alice")
    assert (await directory.load_version("alice", old.tag)).block == render_block(BRIEF)
    reads = source.reads["version"]
    assert (await directory.load_version("alice", new.tag)).block == render_block(POLITE)
    assert source.reads["version"] == reads  # the active one is in memory


async def test_a_version_of_another_user_is_not_found(directory: Directory, store: Store) -> None:
    others, _ = store.put("bob", BRIEF)
    own, _ = store.put("alice", BRIEF)
    for tag in (others.tag, f"{own.id}@2", f"{own.id}@0", "con_nonesuch@1"):
        with pytest.raises(NotFound):
            await directory.load_version("alice", tag)


@pytest.mark.parametrize(
    "tag", ["", "con_x", "con_x@", "@1", "con_x@one", "con_x@-1", "con_x@1@2", "con_x@" + "9" * 30]
)
async def test_what_names_no_version_is_a_bad_request(directory: Directory, tag: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await directory.load_version("alice", tag)
    assert refused.value.param == "x-preamble-constitution"


# Default policies


async def test_the_policies_of_all_users_are_in_memory_from_the_first_refresh(
    store: Store, source: WatchedStore
) -> None:
    store.put_policy("alice", to_content(PolicyFields(n_max=4)))
    directory = Directory(source)
    await directory.refresh()
    reads = source.reads.total()
    assert directory.policy("alice") == PolicyFields(n_max=4)
    assert directory.policy("bob") is None
    assert source.reads.total() == reads


async def test_a_change_of_a_policy_is_seen_by_the_next_refresh_and_touches_nothing_else(
    directory: Directory, store: Store, source: WatchedStore
) -> None:
    store.put("alice", BRIEF)
    store.put_policy("bob", to_content(PolicyFields(n_max=2)))
    await directory.refresh()
    await directory.load("alice")
    store.put_policy("alice", to_content(PolicyFields(n_max=4)))
    store.delete_policy("bob")
    assert not is_fresh(directory)
    source.reads.clear()
    await directory.refresh()
    assert directory.policy("alice") == PolicyFields(n_max=4)
    assert directory.policy("bob") is None
    assert isinstance(directory.lookup("alice"), ActiveConstitution)
    assert source.reads == {"changes": 1, "policy": 2}


async def test_users_with_equal_policies_share_one_in_memory(directory: Directory, store: Store) -> None:
    for user in ("alice", "bob"):
        store.put_policy(user, to_content(PolicyFields(n_max=5)))
    await directory.refresh()
    assert directory.policy("alice") is directory.policy("bob")


async def test_a_policy_that_cannot_be_read_any_more_fails_its_own_user_and_says_what_to_do(
    directory: Directory, store: Store
) -> None:
    damaged, _ = store.put_policy("alice", '{"n_max": -1}')
    store.put_policy("bob", to_content(PolicyFields(n_max=4)))
    await directory.refresh()
    with pytest.raises(StoreUnavailable, match=f"{damaged.tag} is damaged. PUT /v1/policy"):
        directory.policy("alice")
    assert directory.policy("bob") == PolicyFields(n_max=4)
    store.put_policy("alice", to_content(PolicyFields(n_max=4)))
    await directory.refresh()
    assert directory.policy("alice") == PolicyFields(n_max=4)


async def test_when_everything_may_be_stale_the_policies_are_read_anew(
    directory: Directory, store: Store, tmp_path: Path
) -> None:
    store.put_policy("alice", to_content(PolicyFields(n_max=4)))
    await directory.refresh()
    with sqlite3.connect(tmp_path / "preamble.db") as connection:
        connection.execute("DELETE FROM user_policies")
        connection.execute("INSERT INTO changes VALUES (77, 'everything', '')")
    connection.close()
    store.signal.raise_to(77)
    await directory.refresh()
    assert directory.policy("alice") is None
