"""The report as one HTML page that needs nothing else: figures as text, plots embedded, and what each panel means."""

from __future__ import annotations

import base64
from html import escape
from string import Template
from typing import Final

from server.panels import Kind
from server.savings_plots import COLORS, panel_svg
from server.savings_report import AnsweredPanel, AnsweredRow, SavingsReport, figures
from server.savings_text import number, span

_PAGE_INCHES: Final = 14.0

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2328; margin: 2rem auto; max-width: 92rem; padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.05rem; color: #656d76; margin: 2.2rem 0 .6rem }
h3 { font-size: .95rem; margin: 0 } p { margin: .3rem 0; color: #656d76; font-size: .85rem }
.row { display: grid; gap: 1rem } .row > section { border: 1px solid #d8dee4; border-radius: 6px; padding: .8rem 1rem }
.figure { font-size: 1.9rem; font-weight: 600; line-height: 1.3 } .what { font-size: .9rem }
img { width: 100%; display: block }
@media (max-width: 60rem) { .row { grid-template-columns: 1fr !important } }
</style>
</head>
<body>
<h1>$title</h1>
<p>$description</p>
<p>$span, from $prometheus</p>
$rows
</body>
</html>
""")


def page(report: SavingsReport) -> str:
    """Return the whole page."""
    return _PAGE.substitute(
        title=escape(report.board.title),
        description=escape(report.board.description),
        span=escape(span(report.start, report.end)),
        prometheus=escape(report.prometheus),
        rows="\n".join(_row(row, report) for row in report.rows),
    )


def _row(row: AnsweredRow, report: SavingsReport) -> str:
    width = _PAGE_INCHES / len(row.panels)
    panels = "\n".join(_panel(answered, report, width) for answered in row.panels)
    style = f"grid-template-columns: repeat({len(row.panels)}, 1fr)"
    return f'<h2>{escape(row.row.title)}</h2>\n<div class="row" style="{style}">\n{panels}\n</div>'


def _panel(answered: AnsweredPanel, report: SavingsReport, width_inches: float) -> str:
    title, meaning = escape(answered.panel.title), escape(answered.panel.description)
    if answered.panel.kind is Kind.FIGURE:
        shown = _figures(answered)
    else:
        svg = base64.b64encode(panel_svg(answered, report, width_inches).encode()).decode()
        shown = f'<img alt="{title}" src="data:image/svg+xml;base64,{svg}">'
    return f"<section><h3>{title}</h3>\n{shown}\n<p>{meaning}</p></section>"


def _figures(answered: AnsweredPanel) -> str:
    main, *others = figures(answered)
    color = "" if main.level is None else f' style="color: {COLORS[main.level]}"'
    shown = escape(number(main.value, answered.panel.unit_of(main.query)))
    what = [escape(main.query.legend)]
    what += [
        f"{escape(other.query.legend)}: <b>{escape(number(other.value, answered.panel.unit_of(other.query)))}</b>"
        for other in others
    ]
    return f'<div class="figure"{color}>{shown}</div><div class="what">{", ".join(what)}</div>'
