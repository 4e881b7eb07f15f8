"""Options that several commands share. Values stay text: the settings check them, and name a wrong one's source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from server.settings import Settings


def of_setting(name: str) -> Any:
    """Return a command-line option that explains itself as the setting does."""
    field = Settings.model_fields[name]
    default = field.default if isinstance(field.default, (str, int, float)) else ""
    return typer.Option(
        metavar=name.upper(), help=field.description, show_default=str(default) if default != "" else False
    )


Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="TOML file with settings. Unset: preamble.toml, if it is there."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Upstream = Annotated[str | None, of_setting("upstream")]
Model = Annotated[str | None, of_setting("model")]
EmbeddedSelfEvaluation = Annotated[
    bool | None,
    typer.Option(
        "--embedded-self-evaluation/--no-embedded-self-evaluation",
        help=Settings.model_fields["embedded_self_evaluation"].description,
    ),
]
EnginePort = Annotated[str | None, of_setting("engine_port")]
EngineArgs = Annotated[str | None, of_setting("engine_args")]
PolicyFileOption = Annotated[str | None, of_setting("policy_file")]
DataDir = Annotated[str | None, of_setting("data_dir")]
CacheDir = Annotated[str | None, of_setting("cache_dir")]
DatabaseUrl = Annotated[str | None, of_setting("database_url")]
