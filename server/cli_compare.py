"""`preamble selfeval compare`: several ways of scoring beside each other, and beside the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from server.cli_options import AsJson
from server.terminal import report_console, say

_DIRECTORIES_HELP = "What `preamble eval --out DIR` left, one directory for each way of scoring; NAME is shown for it."


def compare_command(
    directories: Annotated[list[str], typer.Argument(metavar="[NAME=]DIR...", help=_DIRECTORIES_HELP)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the comparison goes.")] = Path("results/compare"),
    as_json: AsJson = False,
) -> None:
    """Show ways of scoring beside each other: share of the best-of-n gain, what pruning keeps, ranking and cost.

    All reports must be of the same prompts and as many candidates; `preamble eval --rescore` makes such.
    """
    from server.eval_compare import BETTERS, compare  # noqa: PLC0415 -- `serve` should not wait for it
    from server.eval_compare_plot import draw  # noqa: PLC0415
    from server.eval_compare_report import as_html, plain, show  # noqa: PLC0415

    comparison = compare(directories)
    pictures = {better: draw(comparison, better) for better in BETTERS}
    out.mkdir(parents=True, exist_ok=True)
    for better, picture in pictures.items():
        (out / f"compare-{better}.png").write_bytes(picture)
    (out / "compare.html").write_text(as_html(comparison, pictures), encoding="utf-8")
    (out / "compare.json").write_text(json.dumps(plain(comparison), indent=1) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(plain(comparison)))
        return
    console = report_console(160)
    show(comparison, console)
    say(console, f"\n{out / 'compare.html'}, compare.json, compare-passed.png and compare-reward.png beside it")
