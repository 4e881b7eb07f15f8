"""The command `preamble`: what an operator types. Parses and prints; the work is done by the modules it calls.

Standard output carries results, standard error everything else. Exit status: 0 done, 1 it could not be done, 2 a wrong
setting or option, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from rich.console import Console

from constitutions.constitution import ConstitutionError
from server import __version__
from server.cli_constitution import constitution_app
from server.cli_eval import eval_command
from server.cli_keys import keys_app
from server.cli_options import (
    AsJson,
    CacheDir,
    Config,
    DatabaseUrl,
    DataDir,
    EmbeddedSelfEvaluation,
    EngineArgs,
    EnginePort,
    Model,
    PolicyFileOption,
    Upstream,
    of_setting,
)
from server.cli_policy import policy_app
from server.cli_report import report_app
from server.cli_selfeval import selfeval_app
from server.demo_proxy import DemoError
from server.engine import EngineError
from server.errors import PreambleError
from server.eval_errors import EvalError
from server.serving import ServingError, serve, serve_engine
from server.settings import Settings, SettingsError, load_settings, load_settings_with_sources
from server.settings_text import render_settings, settings_as_json
from server.terminal import say

_INTERRUPTED: Final = 130
_WRONG_SETTING: Final = 2

app = typer.Typer(
    name="preamble",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="An OpenAI-compatible proxy in front of vLLM that gives every user a constitution.",
)
app.add_typer(keys_app, name="keys")
app.add_typer(constitution_app, name="constitution")
app.add_typer(policy_app, name="policy")
app.add_typer(report_app, name="report")
app.add_typer(selfeval_app, name="selfeval")
app.command(name="eval")(eval_command)


def main() -> None:
    """Run the command line on the arguments of this process and end it."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Errors become one message each, without a traceback."""
    err = Console(stderr=True)
    try:
        app(args=arguments, prog_name="preamble")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except SettingsError as error:
        say(err, str(error), style="red")
        return _WRONG_SETTING
    except PreambleError as error:
        say(err, error.message, style="red")
        return 1
    except ConstitutionError as error:
        say(err, f"{error.message}.", style="red")
        return 1
    except (ServingError, EngineError, DemoError, EvalError) as error:
        say(err, str(error), style="red")
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def preamble(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Every setting can be given as an option, as PREAMBLE_<NAME> or in a TOML file, in this order of precedence."""


@app.command(name="serve")
def serve_command(  # noqa: PLR0917 -- typer passes them by name, one per option
    upstream: Upstream = None,
    host: Annotated[str | None, of_setting("host")] = None,
    port: Annotated[str | None, of_setting("port")] = None,
    workers: Annotated[str | None, of_setting("workers")] = None,
    auth: Annotated[str | None, of_setting("auth")] = None,
    system_role: Annotated[str | None, of_setting("system_role")] = None,
    policy_file: PolicyFileOption = None,
    model: Model = None,
    embedded_self_evaluation: EmbeddedSelfEvaluation = None,
    engine_port: EnginePort = None,
    engine_args: EngineArgs = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    database_url: DatabaseUrl = None,
    shutdown_timeout_s: Annotated[str | None, of_setting("shutdown_timeout_s")] = None,
    log_level: Annotated[str | None, of_setting("log_level")] = None,
    log_format: Annotated[str | None, of_setting("log_format")] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help=Settings.model_fields["access_log"].description)
    ] = None,
    config: Config = None,
    print_settings: Annotated[
        bool, typer.Option("--print-settings", help="Print the effective settings as TOML, secrets masked, and exit.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve the proxy, in front of --upstream or of an embedded vLLM. Secrets are taken from environment or file only.

    Ctrl-C or SIGTERM stops everything, answers in flight first. When the embedded vLLM ends by itself the proxy stops
    with exit status 1.
    """
    loaded = load_settings_with_sources(
        config=config,
        upstream=upstream,
        host=host,
        port=port,
        workers=workers,
        auth=auth,
        model=model,
        embedded_self_evaluation=embedded_self_evaluation,
        engine_port=engine_port,
        engine_args=engine_args,
        system_role=system_role,
        policy_file=policy_file,
        data_dir=data_dir,
        cache_dir=cache_dir,
        database_url=database_url,
        shutdown_timeout_s=shutdown_timeout_s,
        log_level=log_level,
        log_format=log_format,
        access_log=access_log,
    )
    if print_settings:
        typer.echo(json.dumps(settings_as_json(loaded), indent=2) if as_json else render_settings(loaded), nl=as_json)
        return
    serve(loaded.settings, out=Console(), err=Console(stderr=True), as_json=as_json)


@app.command(name="engine")
def engine_command(
    model: Model = None,
    embedded_self_evaluation: EmbeddedSelfEvaluation = None,
    engine_port: EnginePort = None,
    engine_args: EngineArgs = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run only the embedded vLLM, in the foreground, and print how to point a proxy at it."""
    settings = load_settings(
        config=config,
        model=model,
        embedded_self_evaluation=embedded_self_evaluation,
        engine_port=engine_port,
        engine_args=engine_args,
        data_dir=data_dir,
        cache_dir=cache_dir,
    )
    serve_engine(settings, out=Console(), err=Console(stderr=True), as_json=as_json)


@app.command(name="doctor")
def doctor_command(
    upstream: Upstream = None,
    policy_file: PolicyFileOption = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Check everything the proxy needs, with a remedy for what is wrong. Exit status 1 when something failed."""
    from server.doctor import examine, print_report  # noqa: PLC0415 -- `serve` should not wait for it

    report = examine(
        lambda: load_settings(
            config=config, upstream=upstream, policy_file=policy_file, data_dir=data_dir, database_url=database_url
        )
    )
    print_report(report, Console(), as_json=as_json)
    raise typer.Exit(report.exit_status)


@app.command(name="demo")
def demo_command(
    upstream: Upstream = None, cache_dir: CacheDir = None, model: Model = None, config: Config = None
) -> None:
    """Walk through the product with the openai client: starts vLLM and the proxy, leaves nothing behind."""
    from server.demo import run_demo  # noqa: PLC0415 -- the openai client takes a second to import

    settings = load_settings(config=config, upstream=upstream, cache_dir=cache_dir, model=model)
    run_demo(settings, Console())
