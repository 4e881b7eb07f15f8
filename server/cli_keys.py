"""`preamble keys`: API keys, in the store directly. A running proxy knows of every change at once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from server.cli_options import AsJson, Config, DatabaseUrl, DataDir
from server.errors import BadRequest
from server.identity import ADMIN_USER
from server.records import ApiKey
from server.settings import load_settings
from server.store import Store

keys_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")


@keys_app.command()
def create(
    user: Annotated[str | None, typer.Option(help="Whose key it is; may be left out with --admin.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It administers all users and keys.")] = False,
    may_name_sub_users: Annotated[
        bool, typer.Option("--may-name-sub-users", help="Its bearer may act as <user>:<name> (x-preamble-user).")
    ] = False,
    label: Annotated[str | None, typer.Option(help="A note of what it is for.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. It is shown this once: only its hash is kept."""
    if user is None:
        if not admin:
            raise BadRequest(
                "Whose key? Name the user: `preamble keys create --user alice`, or make an admin key with --admin."
            )
        user = ADMIN_USER
    with _store(config, data_dir, database_url) as store:
        key, token = store.create_key(user, label=label, admin=admin, may_name_sub_users=may_name_sub_users)
    if as_json:
        typer.echo(json.dumps({**_plain(key), "key": token}))
        return
    typer.echo(token)
    typer.echo(
        f"{'Admin key' if admin else 'Key'} {key.id} of user {key.user}. Keep it now: it cannot be shown again.",
        err=True,
    )


@keys_app.command(name="list")
def list_keys(
    live: Annotated[bool, typer.Option("--live", help="Leave out revoked keys.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List all keys, the newest first; never the keys themselves."""
    with _store(config, data_dir, database_url) as store:
        keys = store.keys(live_only=live)
    if as_json:
        typer.echo(json.dumps([_plain(key) for key in keys]))
        return
    if not keys:
        typer.echo("There are no keys. Create one: preamble keys create --admin", err=True)
        return
    table = Table("id", "user", "may", "label", "created", "revoked", box=None)
    for key in keys:
        table.add_row(key.id, key.user, _powers(key), key.label or "", _time(key.created_at), _time(key.revoked_at))
    Console(markup=False, highlight=False).print(table)


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id, as `preamble keys list` shows it.")],
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key: requests with it are refused from now on."""
    with _store(config, data_dir, database_url) as store:
        key = store.revoke_key(key_id)
    typer.echo(json.dumps(_plain(key)) if as_json else f"Revoked {key.id} of user {key.user}.")


def _store(config: Path | None, data_dir: str | None, database_url: str | None) -> Store:
    return Store.open(load_settings(config=config, data_dir=data_dir, database_url=database_url).store_url)


def _plain(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "user": key.user,
        "label": key.label,
        "admin": key.admin,
        "may_name_sub_users": key.may_name_sub_users,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


def _powers(key: ApiKey) -> str:
    powers = ["administer"] * key.admin + ["name sub-users"] * key.may_name_sub_users
    return ", ".join(powers)


def _time(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
