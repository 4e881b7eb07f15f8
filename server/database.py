"""The database under the store: how it is opened, migrated and written, and what its failures are called.

SQLite runs in WAL mode with synchronous=FULL: a commit returns when the write is on the disk. Every write transaction
takes the write lock when it begins (BEGIN IMMEDIATE): what it reads cannot change before it writes, so no update of
another thread or process is lost. Any failure of the database is a `StoreUnavailable`, and its transaction is undone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from server import migrations
from server.errors import StoreUnavailable
from server.generation import ChangeSignal, LocalGeneration, PolledGeneration, SharedGeneration
from server.schema import changes

_WRITE: Final = "preamble_write"
_WRITE_LOCK: Final = 0x70726561  # any number that other software in the same database does not lock
_POLL_INTERVAL_S: Final = 1.0

# By the beginning of SQLite's own error name (https://www.sqlite.org/rescode.html).
_REMEDIES: Final = (
    ("SQLITE_BUSY", "it is locked by another process; try again, and look for a shell or backup that keeps it open"),
    ("SQLITE_FULL", "its disk is full; free space on the volume of data_dir"),
    ("SQLITE_READONLY", "it is read-only; give the proxy's user write access to data_dir and all that is in it"),
    ("SQLITE_CANTOPEN", "its file cannot be opened; give the proxy's user access to data_dir and all that is in it"),
    ("SQLITE_PERM", "its file cannot be opened; give the proxy's user access to data_dir and all that is in it"),
    ("SQLITE_CORRUPT", "its file is damaged; stop the proxy and restore preamble.db in data_dir from a backup"),
    ("SQLITE_NOTADB", "its file is no database; stop the proxy and restore preamble.db in data_dir from a backup"),
    ("SQLITE_IOERR", "its disk reports errors or is full; check the volume of data_dir"),
)

_URL_REMEDY: Final = (
    "Set database_url to something like sqlite:////var/lib/preamble/preamble.db, or leave it unset for SQLite in "
    "data_dir."
)


class Database:
    """An opened and migrated database. Threads may share it; processes each open their own."""

    def __init__(self, url: str, *, busy_timeout_s: float = 5.0, poll_interval_s: float = _POLL_INTERVAL_S) -> None:
        """Open `url` (SQLAlchemy's notation), creating directory, file and tables where they are missing.

        `busy_timeout_s`: longest wait for another writer. `poll_interval_s`: how often a database server is asked for
        changes. Raises `StoreUnavailable`.
        """
        parsed = _parse(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        self._file = _sqlite_file(parsed)
        self._busy_timeout_s = busy_timeout_s
        self._writers = threading.Lock()
        with _named_failures():
            if self._file is not None:
                _create_file(self._file)
            self._engine = self._create_engine(parsed)
            try:
                self.signal = self._open_signal(poll_interval_s)
            except BaseException:
                self._engine.dispose()
                raise

    def close(self) -> None:
        """Close all connections."""
        self.signal.close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a connection whose reads all see one state. Raises `StoreUnavailable`."""
        with _named_failures(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Give a connection for a write; when the context ends it is on the disk, or, with an exception, undone.

        Raises `StoreUnavailable`.
        """
        # Threads queue here: waiting for SQLite's own lock means sleeping and trying again.
        if not self._writers.acquire(timeout=self._busy_timeout_s):
            raise _unavailable("SQLITE_BUSY")
        try:
            with (
                _named_failures(),
                self._engine.connect().execution_options(**{_WRITE: True}) as connection,
                connection.begin(),
            ):
                if not self._sqlite:
                    # PostgreSQL lets writers run side by side, and number their changes out of order.
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITE_LOCK)))
                yield connection
        finally:
            self._writers.release()

    def latest_change(self, connection: sa.Connection) -> int:
        """Return the number of the latest change, 0 if there has been none."""
        return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(changes.c.seq), 0))).scalar_one())

    def ping(self) -> None:
        """Write something to the disk for real; raise `StoreUnavailable` if that fails."""
        with self.write() as connection:
            if self._sqlite:
                # A field that SQLite leaves to applications. Only a commit that changes a page finds a full disk.
                connection.exec_driver_sql("PRAGMA user_version = 1")

    def _create_engine(self, url: URL) -> sa.Engine:
        options: dict[str, Any] = {}
        if self._sqlite:
            # isolation_level None: the driver starts no transactions of its own, `_begin` below does.
            options["connect_args"] = {
                "isolation_level": None,
                "timeout": self._busy_timeout_s,
                "check_same_thread": False,
            }
            # A database in memory belongs to one connection, so all threads must take turns with it.
            in_memory = self._file is None
            options |= {
                "poolclass": sa.QueuePool,
                "pool_size": 1 if in_memory else 8,
                "max_overflow": 0 if in_memory else 64,
            }
        engine = sa.create_engine(url, **options)
        if self._sqlite:
            sa.event.listen(engine, "connect", _configure_sqlite)
            sa.event.listen(engine, "begin", _begin)
        return engine

    def _open_signal(self, poll_interval_s: float) -> ChangeSignal:
        if self._file is not None:
            shared = SharedGeneration(self._file.with_name(self._file.name + ".generation"))
            try:
                # One process at a time: SQLite does not wait for a lock while it switches to WAL.
                with shared.locked():
                    self._switch_to_wal()
                    self._migrate()
                self._catch_up(shared)
            except BaseException:
                shared.close()
                raise
            return shared
        self._migrate()
        signal = LocalGeneration() if self._sqlite else PolledGeneration(self._read_latest_change, poll_interval_s)
        signal.raise_to(self._read_latest_change())
        return signal

    def _switch_to_wal(self) -> None:
        with self._engine.connect() as connection:
            # Below the transactions of SQLAlchemy: the journal mode cannot change inside one.
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA journal_mode = WAL")
            mode = str(cursor.fetchall()[0][0])
            cursor.close()
        if mode != "wal":
            raise StoreUnavailable(
                f"The store cannot use SQLite's WAL mode (it stayed {mode!r}). Put data_dir on a local disk: network "
                "file systems lack the shared memory that WAL needs."
            )

    def _migrate(self) -> None:
        newest = migrations.newest_revision()
        with self.read() as connection:
            current = migrations.current_revision(connection)
        if current == newest:
            return
        if current is not None and not migrations.is_known(current):
            raise StoreUnavailable(
                f"The store was written by a newer version of Preamble (revision {current}, this one knows {newest}). "
                "Install that version again, or restore a backup from before it."
            )
        with self.write() as connection:
            migrations.upgrade(connection)

    def _read_latest_change(self) -> int:
        with self.read() as connection:
            return self.latest_change(connection)

    def _catch_up(self, shared: SharedGeneration) -> None:
        """Bring signal and database together again after a crash or a restored backup."""
        signalled = shared.current()  # before the database: a write that ends in between must not look like a gap
        latest = self._read_latest_change()
        if signalled > latest:
            # An older database was put in place. New changes need numbers that nobody has read up to yet.
            with self.write() as connection:
                latest = max(self.latest_change(connection), signalled + 1)
                if latest == signalled + 1:
                    connection.execute(sa.insert(changes).values(seq=latest, kind="everything", subject=""))
        shared.raise_to(latest)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise StoreUnavailable(f"The store's URL is not one that SQLAlchemy understands. {_URL_REMEDY}") from error
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise StoreUnavailable(f"The store cannot be kept in {parsed.get_backend_name()}. {_URL_REMEDY}")
    return parsed


def _sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite URL; None for one in memory and for other databases."""
    name = url.database or ""
    if url.get_backend_name() != "sqlite" or name in {"", ":memory:"}:
        return None
    return Path(name.removeprefix("file:"))


def _create_file(file: Path) -> None:
    """Create the directory, for its owner only, and the file; SQLite gives its other files the same permissions."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        file.touch(mode=0o600)


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _named_failures() -> Iterator[None]:
    """Turn the failures of database, driver and file system into `StoreUnavailable` with a remedy."""
    try:
        yield
    except DBAPIError as error:
        raise _unavailable(getattr(error.orig, "sqlite_errorname", type(error.orig).__name__)) from error
    except sqlite3.Error as error:
        raise _unavailable(getattr(error, "sqlite_errorname", type(error).__name__)) from error
    except PoolTimeoutError as error:
        raise StoreUnavailable("The store has no free connection. Try again in a moment.") from error
    except OSError as error:
        raise StoreUnavailable(
            f"The store cannot be opened ({error.strerror}: {error.filename}). Give the proxy's user access to "
            "data_dir and all that is in it."
        ) from error


def _unavailable(name: str) -> StoreUnavailable:
    for beginning, remedy in _REMEDIES:
        if name.startswith(beginning):
            return StoreUnavailable(f"The store cannot be used: {remedy}. Nothing was written.")
    return StoreUnavailable(f"The store cannot be used ({name}). Nothing was written; try again.")
