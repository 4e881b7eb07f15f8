"""`preamble policy`: read and write a user's default policy in the store. A running proxy follows it at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli_options import AsJson, Config, DatabaseUrl, DataDir
from server.errors import NotFound
from server.identity import DEFAULT_USER
from server.policy import read_fields, resolve, to_content, to_text
from server.policy_wire import SAID, to_plain
from server.records import UserPolicy
from server.settings import Settings, load_settings
from server.store import Store

policy_app = typer.Typer(no_args_is_help=True, help="Show and change how much a user's requests may spend by default.")

User = Annotated[str, typer.Option(help="Whose policy. The default is who a loopback proxy takes a caller for.")]


@policy_app.command()
def show(
    user: User = DEFAULT_USER,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what was set, and what it comes to with the server's default after it."""
    settings = _settings(config, data_dir, database_url)
    with Store.open(settings.store_url) as store:
        policy = store.find_policy(user)
    if policy is None:
        raise NotFound(f"{user} has no policy. Give one: preamble policy set --user {user} mode=adaptive,n_max=8")
    plain = _plain(policy, settings)
    if as_json:
        typer.echo(json.dumps(plain))
        return
    typer.echo(f"{policy.tag} of {user}: {to_text(plain[SAID])}\n")
    if plain["problem"] is not None:
        typer.echo(f"It cannot be followed: {plain['problem']}")
        return
    after = f"With the server's default after it (from: {plain['default_from']})"
    typer.echo(f"{after}, a request that says nothing itself gets:")
    for name, value in plain["effective"].items():
        if value is not None:
            typer.echo(f"  {name} = {json.dumps(value)}")


@policy_app.command(name="set")
def set_fields(
    fields: Annotated[str, typer.Argument(metavar="FIELDS", help="mode=adaptive,n_max=8 or a JSON object.")],
    user: User = DEFAULT_USER,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make these fields the user's default policy, in place of the one before."""
    settings = _settings(config, data_dir, database_url)
    read = read_fields(fields, "")
    resolve(settings.policy, ("", read), reward_model=settings.reward_upstream is not None)
    with Store.open(settings.store_url) as store:
        policy, changed = store.put_policy(user, to_content(read))
    plain = _plain(policy, settings)
    if as_json:
        typer.echo(json.dumps({**plain, "changed": changed}))
        return
    typer.echo(f"{policy.tag} of {user} {'holds now' if changed else 'said the same already'}: {to_text(plain[SAID])}")


@policy_app.command()
def clear(
    user: User = DEFAULT_USER,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete the user's default policy: the server's holds again."""
    with Store.open(_settings(config, data_dir, database_url).store_url) as store:
        store.delete_policy(user)
    typer.echo(json.dumps({"user": user, "deleted": True}) if as_json else f"{user} has no policy any more.")


def _plain(policy: UserPolicy, settings: Settings) -> dict[str, Any]:
    reward_model = settings.reward_upstream is not None
    return to_plain(policy, settings.policy, default_from=settings.policy_from, reward_model=reward_model)


def _settings(config: Path | None, data_dir: str | None, database_url: str | None) -> Settings:
    return load_settings(config=config, data_dir=data_dir, database_url=database_url)
