"""`preamble report`: what Prometheus remembers, drawn or printed without Grafana."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from server.cli_options import AsJson
from server.terminal import say

if TYPE_CHECKING:
    from server.savings_report import SavingsReport

report_app = typer.Typer(no_args_is_help=True, help="Draw what Prometheus remembers, without Grafana.")

_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_FORMATS: Final = (".png", ".html", ".json")
_SHORTEST_S: Final = 1.0


@report_app.callback()
def report() -> None:
    """Report on a span of time."""


@report_app.command()
def savings(
    prometheus: Annotated[
        str, typer.Option(metavar="URL", help="Base URL of the Prometheus that scrapes the proxy and vLLM.")
    ] = "http://127.0.0.1:9090",
    since: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How far back, such as 30m, 6h or 2d.", show_default="1h")
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="TIME", help="From when: 2026-05-04T14:00 (local time) or Unix seconds.")
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="TIME", help="Until when.", show_default="now")] = None,
    scrape_interval: Annotated[
        str, typer.Option(metavar="DURATION", help="How often Prometheus scrapes, or longer; rates go over 4 of it.")
    ] = "15s",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all panels there: .png, .html or .json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what adaptive best-of-N saved, with the panels of the Grafana board.

    Prints the headline figures; --json prints these and every series. Exit status 1 when Prometheus cannot be asked or
    knows nothing of that time, 2 when an option is wrong.
    """
    first, last = _span(since, start, end)
    interval_s = _duration(scrape_interval, "--scrape-interval")
    _check_url(prometheus)
    if out is not None:
        _check_file(out)
    err = Console(stderr=True)
    # `serve` should wait for neither, and matplotlib is for pictures only.
    from server.board import BOARD  # noqa: PLC0415
    from server.prometheus import Prometheus, PrometheusError  # noqa: PLC0415
    from server.savings_report import as_plain, ask  # noqa: PLC0415

    try:
        with Prometheus(prometheus) as asked:
            answered = ask(BOARD, asked, first, last, interval_s)
        if out is not None:
            _write(answered, out)
    except PrometheusError as error:
        say(err, str(error), style="red")
        raise typer.Exit(1) from error
    except OSError as error:
        say(err, f"{out} cannot be written ({error.strerror or error}). Choose another --out.", style="red")
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(as_plain(answered)))
    else:
        _print(answered, Console())
        if out is None:
            say(err, "All panels as a picture or a page: --out savings.png, --out savings.html")
    if out is not None:
        say(err, f"Written: {out}")


def _write(answered: SavingsReport, out: Path) -> None:
    if out.suffix == ".json":
        from server.savings_report import as_plain  # noqa: PLC0415 -- as above

        out.write_text(json.dumps(as_plain(answered)) + "\n")
    elif out.suffix == ".html":
        from server.savings_page import page  # noqa: PLC0415 -- matplotlib takes a second to import

        out.write_text(page(answered))
    else:
        from server.savings_plots import write_png  # noqa: PLC0415 -- the same

        write_png(answered, out)


def _print(answered: SavingsReport, console: Console) -> None:
    from server.savings_text import number, span  # noqa: PLC0415 -- as above

    say(console, f"{answered.board.title}, {span(answered.start, answered.end)}\n")
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    table.columns[2].justify = "right"
    title = ""
    for figure in answered.figures():
        shown = number(figure.value, figure.panel.unit_of(figure.query))
        table.add_row("" if figure.panel.title == title else figure.panel.title, figure.query.legend, shown)
        title = figure.panel.title
    console.print(table, markup=False, highlight=False)


def _span(since: str | None, start: str | None, end: str | None) -> tuple[float, float]:
    if since is not None and start is not None:
        raise typer.BadParameter("give --since or --start, not both.", param_hint="--since")
    last = time.time() if end is None else _moment(end, "--end")
    first = last - _duration(since or "1h", "--since") if start is None else _moment(start, "--start")
    if last - first < _SHORTEST_S:
        raise typer.BadParameter("must be before the end, which is now unless --end says.", param_hint="--start")
    return first, last


def _duration(text: str, option: str) -> float:
    found = _DURATION.fullmatch(text)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds < _SHORTEST_S:
        raise typer.BadParameter(
            f"{text!r} is no duration of a second or more, such as 30m, 6h or 2d.", param_hint=option
        )
    return seconds


def _moment(text: str, option: str) -> float:
    try:
        return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise typer.BadParameter(
            f"{text!r} is no time. Write 2026-05-04T14:00 (local time, or end it with Z or +02:00) or Unix seconds.",
            param_hint=option,
        ) from error


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise typer.BadParameter(f"{url!r} is no base URL such as http://127.0.0.1:9090.", param_hint="--prometheus")


def _check_file(out: Path) -> None:
    if out.suffix not in _FORMATS:
        raise typer.BadParameter(f"{out} must end in one of {', '.join(_FORMATS)}.", param_hint="--out")
