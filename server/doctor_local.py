"""The checks of what lies on this machine: store, keys, secret, files. They create and migrate nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from server import migrations
from server.checks import Check, failed, ok, warning
from server.errors import StoreUnavailable
from server.identity import SECRET_FILE, load_or_create_secret
from server.policy import to_text
from server.probe import UpstreamModel
from server.self_evaluation_config import SelfEvaluationConfigError, in_force, read_config
from server.settings import Settings
from server.store import Store

_MIB: Final = 1024 * 1024
_LITTLE_SPACE_BYTES: Final = 1024 * _MIB
_NO_SPACE_BYTES: Final = 50 * _MIB
_NAME: Final = "store"


def store_exists(settings: Settings) -> bool:
    """Return whether there is a store, or a database server that may hold one."""
    file = _file(settings)
    return file is None or file.exists()


def check_store(settings: Settings) -> list[Check]:
    """Return whether the store, the first check, can be written and is of this version; then, of a file, its disk."""
    file = _file(settings)
    if file is None:
        return [_check_writing(settings)]
    return [_check_file(settings, file), _check_space(file)]


def check_keys(settings: Settings, *, store_usable: bool) -> Check:
    """Return whether somebody can use the proxy where it asks for API keys."""
    name = "API keys"
    if not settings.auth_required:
        return ok(name, f"Not asked for: {settings.host} can be reached from this machine only.")
    if settings.admin_key is not None:
        return ok(name, "Asked for; the settings have an admin key.")
    none = failed(name, "Asked for, and there are none.", "Create one: preamble keys create --admin")
    if not store_usable:
        # Opening the store would create or migrate it.
        return none if not store_exists(settings) else warning(name, "Asked for.", "See to the store, then look again.")
    with Store.open(settings.store_url) as store:
        count = len(store.keys(live_only=True))
    return ok(name, f"Asked for; {count} can be used.") if count else none


def check_secret(settings: Settings) -> Check:
    """Return whether the secret behind cache salts can be used."""
    if settings.secret is not None:
        return ok("secret", "Given in the settings.")
    path = settings.data_dir / SECRET_FILE
    if not path.exists():
        return ok("secret", f"Will be made at the first start, in {path}.")
    try:
        load_or_create_secret(settings.data_dir)
    except StoreUnavailable as error:
        return failed("secret", f"{path} cannot be used.", error.message)
    return ok("secret", f"Kept in {path}.")


def check_self_evaluation(settings: Settings, artefact: Path | None) -> Check:
    """Return what the embedded engine's model will be asked by, as far as it can be seen before it runs.

    artefact: the directory of the trained self-evaluation that ships for the embedded model, None where none does.
    """
    name, file = "self-evaluation", settings.self_evaluation
    trained = artefact is not None and settings.model is None and settings.embedded_self_evaluation
    root = str(artefact.absolute()) if artefact is not None and trained else settings.model
    try:
        explicit = None if file is None else read_config(file)
        config = in_force(explicit, UpstreamModel("", None, root=root), settings.model)
    except SelfEvaluationConfigError as error:
        if file is not None:
            return failed(name, str(error), "Correct the file, or the setting self_evaluation.")
        return warning(name, f"{error} The literal question is in force.", "Correct the file.")
    return ok(name, f"By {config.name}. {config.about}")


def tell_policy(settings: Settings) -> Check:
    """Return what the server's default policy is and which setting says it; a wrong one is no valid setting."""
    name, fields = "default policy", to_text(settings.policy.said())
    if settings.policy_file is not None:
        return ok(name, f"From {settings.policy_file.path} (policy_file): {fields}.")
    if settings.policy_from == "policy":
        return ok(name, f"From the setting policy: {fields}.")
    return ok(name, "Off: neither policy nor policy_file is set, so only who asks for sampling gets it.")


def _check_file(settings: Settings, file: Path) -> Check:
    if not file.exists():
        return _check_creation(file)
    try:
        revision = _revision(file)
    except sqlite3.Error as error:
        remedy = "Restore it from a backup, or move it away to begin with an empty store."
        return failed(_NAME, f"{file} cannot be read as a store ({error}).", remedy)
    if revision != migrations.newest_revision() and (revision is None or migrations.is_known(revision)):
        remedy = "The next `preamble serve` brings it up to date by itself; make a backup before."
        return warning(_NAME, f"{file} was written by an older version (revision {revision}).", remedy)
    return _check_writing(settings)


def _check_writing(settings: Settings) -> Check:
    """Write to the store for real; it is there and current, or a newer version's, which opening it finds out."""
    try:
        with Store.open(settings.store_url) as store:
            store.ping()
    except StoreUnavailable as error:
        return failed(_NAME, "It cannot be used.", error.message)
    shown = settings.masked()["database_url"] or settings.store_url
    return ok(_NAME, f"{shown} can be written; its tables are current.")


def _check_creation(file: Path) -> Check:
    directory = _existing(file.parent)
    if not os.access(directory, os.W_OK | os.X_OK):
        remedy = f"Give the proxy's user access to {directory}, or choose another data_dir."
        return failed(_NAME, f"{file} cannot be created: {directory} cannot be written.", remedy)
    return ok(_NAME, f"Will be created at the first start, in {file}.")


def _check_space(file: Path) -> Check:
    free = shutil.disk_usage(_existing(file.parent)).free
    message = f"{free // _MIB:,} MiB are free for {file.parent}."
    if free < _LITTLE_SPACE_BYTES:
        check = failed if free < _NO_SPACE_BYTES else warning
        return check("disk", message, "Free space there, or choose another data_dir.")
    return ok("disk", message)


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.absolute().parents) if path.exists())


def _file(settings: Settings) -> Path | None:
    """Return the SQLite file of the store, None where it is no file."""
    scheme, _, name = settings.store_url.partition(":///")
    return Path(name) if scheme.startswith("sqlite") and name not in {"", ":memory:"} else None


def _revision(file: Path) -> str | None:
    """Return the revision of the store's tables, None where there are none; reads only. Raises `sqlite3.Error`."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return None
            raise
    return None if row is None else str(row[0])
