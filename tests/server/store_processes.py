"""What the store's tests do in processes of their own: functions that can be started by their name."""

from __future__ import annotations

import resource
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

from constitutions.constitution import Constitution, Principle
from server.errors import PreconditionFailed, StoreUnavailable
from server.store import Store


def constitution(*texts: str) -> Constitution:
    return Constitution(tuple(Principle(text) for text in texts))


def put_if_match(url: str, etag: str, name: str, start: Barrier, result: Connection) -> None:
    """Replace what `etag` names, at the same time as others; send whether it worked."""
    with Store.open(url) as store:
        start.wait()
        try:
            store.put("alice", constitution(name), if_match=etag)
        except PreconditionFailed:
            result.send(False)
        else:
            result.send(True)


def open_and_put(url: str, name: str, start: Barrier, result: Connection) -> None:
    """Open a store that may not exist yet, at the same time as others, and write to it."""
    start.wait()
    with Store.open(url) as store:
        version, _ = store.put(name, constitution(name))
        result.send(version.version)


def put_until_killed(url: str, acknowledged: Connection) -> None:
    """Write version after version, sending the number of each that the store has acknowledged."""
    with Store.open(url) as store:
        while True:
            latest = store.find_active("alice")
            number = 1 if latest is None else latest.version + 1
            version, _ = store.put("alice", constitution(f"Be number {number}."))
            acknowledged.send(version.version)


def put_on_a_full_disk(url: str, result: Connection) -> None:
    """Let no file grow, write, let them grow again, write; send what came of it.

    The limit on file sizes stands in for a full disk: the kernel refuses the same writes, without a disk to fill.
    """
    with Store.open(url) as store:
        store.put("alice", constitution("Before."))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            store.put("alice", constitution("During."))
        except StoreUnavailable as error:
            result.send(error.message)
        try:
            store.ping()
        except StoreUnavailable as error:
            result.send(error.message)
        result.send([version.version for version in store.versions("alice")[0]])
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.ping()
        result.send(store.put("alice", constitution("After."))[0].version)


def put_policies_until_killed(url: str, acknowledged: Connection) -> None:
    """Write policy after policy, sending the version of each that the store has acknowledged."""
    with Store.open(url) as store:
        number = 0
        while True:
            number += 1
            policy, _ = store.put_policy("alice", f'{{"n_max":{number}}}')
            acknowledged.send(policy.version)
