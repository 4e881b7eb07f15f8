"""Brings a database to the current schema with Alembic, run from inside the package: there is no alembic.ini.

A new revision is a file in `versions/` named `rev_<number>_<what>.py`, whose `down_revision` is the one before it. A
test compares the migrated database with `server/schema.py`, so neither can be forgotten.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def _config() -> Config:
    config = Config()
    # Alembic reads options through ConfigParser, to which a percent sign means interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def newest_revision() -> str:
    """Return the revision that this version of the package works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the package holds no migrations: it was not installed completely")
    return revision


def current_revision(connection: Connection) -> str | None:
    """Return the revision that the database is at, None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def is_known(revision: str) -> bool:
    """Return whether this version of the package has that revision; not so if a newer one has written the database."""
    return any(script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database to a revision, the newest if not told otherwise, all or nothing.

    It happens inside the transaction that is open on `connection`.
    """
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
