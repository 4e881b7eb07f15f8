"""`preamble constitution`: read and write a user's constitution in the store. A running proxy uses it at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from constitutions.compose import render_block
from constitutions.constitution import Constitution, ConstitutionError, Limits
from constitutions.formats import from_plain, parse, render, to_plain
from server.cli_options import AsJson, Config, DatabaseUrl, DataDir
from server.errors import BadRequest, NotFound
from server.identity import DEFAULT_USER
from server.records import ConstitutionVersion
from server.settings import Settings, load_settings
from server.store import Store

constitution_app = typer.Typer(no_args_is_help=True, help="Show and change the constitution of a user.")

_MEDIA_TYPES: Final = {"json": "application/json", "yaml": "application/yaml", "markdown": "text/markdown"}
_SUFFIXES: Final = {".json": "json", ".yaml": "yaml", ".yml": "yaml", ".md": "markdown", ".markdown": "markdown"}

User = Annotated[str, typer.Option(help="Whose constitution. The default is who a loopback proxy takes a caller for.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="json, yaml or markdown. Unset: by the file's extension, yaml for standard input and output."
    ),
]
Version = Annotated[int | None, typer.Option(help="A version's number. Unset: the active one.")]


@constitution_app.command()
def show(
    user: User = DEFAULT_USER,
    version: Version = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show a version, and the text that the model reads."""
    with _opened(config, data_dir, database_url) as store:
        found = _read(store, user, version)
    if as_json:
        typer.echo(json.dumps({**_plain(found), "block": render_block(found.constitution)}))
        return
    typer.echo(f"{found.tag} of {found.user}, {'active' if found.active else 'not active'}\n")
    typer.echo(render_block(found.constitution))


@constitution_app.command(name="set")
def set_principles(
    principles: Annotated[list[str], typer.Argument(metavar="PRINCIPLE...", help="The most important first.")],
    user: User = DEFAULT_USER,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a constitution of these principles, each one argument."""
    settings = _settings(config, data_dir, database_url)
    constitution = from_plain(list(principles), _limits(settings))
    _put(settings, user, constitution, as_json=as_json)


@constitution_app.command(name="import")
def import_file(
    file: Annotated[str, typer.Argument(help="A .json, .yaml or .md file, or - for standard input.")],
    user: User = DEFAULT_USER,
    file_format: Format = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make the constitution in a file the user's active one."""
    settings = _settings(config, data_dir, database_url)
    media_type = _media_type(file, file_format)
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        constitution = parse(media_type, body, _limits(settings))
    except OSError as error:
        raise BadRequest(f"Cannot read {file} ({error.strerror}). Give a file that you may read.") from error
    except ConstitutionError as error:
        raise BadRequest(f"{file}: {error.message}.") from error
    _put(settings, user, constitution, as_json=as_json)


@constitution_app.command(name="export")
def export_file(
    file: Annotated[str, typer.Argument(help="A .json, .yaml or .md file, or - for standard output.")] = "-",
    user: User = DEFAULT_USER,
    version: Version = None,
    file_format: Format = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write a version to a file; `import` reads it back as it is."""
    media_type = _media_type(file, file_format)
    with _opened(config, data_dir, database_url) as store:
        found = _read(store, user, version)
    written = render(media_type, found.constitution)
    written += b"" if written.endswith(b"\n") else b"\n"
    if file == "-":
        typer.echo(written, nl=False)
        return
    try:
        Path(file).write_bytes(written)
    except OSError as error:
        raise BadRequest(f"Cannot write {file} ({error.strerror}). Give a file that you may write.") from error
    typer.echo(f"Wrote {found.tag} of {found.user} to {file}.", err=True)


def _put(settings: Settings, user: str, constitution: Constitution, *, as_json: bool) -> None:
    with Store.open(settings.store_url) as store:
        version, is_new = store.put(user, constitution)
    if as_json:
        typer.echo(json.dumps({**_plain(version), "created": is_new}))
        return
    state = "is now active" if is_new else "said the same already and stays active"
    typer.echo(f"{version.tag} of {version.user} {state}: {len(constitution.principles)} principle(s).")


def _plain(version: ConstitutionVersion) -> dict[str, object]:
    return {
        "id": version.id,
        "version": version.version,
        "user": version.user,
        "active": version.active,
        "created_at": version.created_at,
        **to_plain(version.constitution),
    }


def _media_type(file: str, file_format: str | None) -> str:
    name = file_format or ("yaml" if file == "-" else _SUFFIXES.get(Path(file).suffix.lower(), ""))
    media_type = _MEDIA_TYPES.get(name)
    if media_type is None:
        unknown = f"{file_format!r} is no format" if file_format else f"The extension of {file} names no format"
        raise BadRequest(f"{unknown}. Use --format json, yaml or markdown.")
    return media_type


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_principles, settings.max_principle_chars, settings.max_constitution_chars)


def _settings(config: Path | None, data_dir: str | None, database_url: str | None) -> Settings:
    return load_settings(config=config, data_dir=data_dir, database_url=database_url)


def _opened(config: Path | None, data_dir: str | None, database_url: str | None) -> Store:
    return Store.open(_settings(config, data_dir, database_url).store_url)


def _read(store: Store, user: str, version: int | None) -> ConstitutionVersion:
    if version is not None:
        return store.version(user, version)
    active = store.find_active(user)
    if active is None:
        raise NotFound(
            f"{user} has no constitution. Give one: preamble constitution set --user {user} 'Answer briefly.'"
        )
    return active
