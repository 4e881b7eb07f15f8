"""Write the Grafana dashboard of the *Compute savings* board, which `server/board.py` defines.

    python deploy/grafana/build.py          writes dashboards/savings.json beside this script
    python deploy/grafana/build.py --check  exit status 1 if that file is not what would be written

The JSON is that of Grafana 11.6, through Grafana's own SDK, whose types are its schema. A test keeps the file current.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from server.board import BOARD
from server.panels import GRID_COLUMNS, Board, Kind, Level, Panel, Row, Unit, Variable

TARGET: Final = Path(__file__).resolve().parent / "dashboards" / "savings.json"

# Grafana's ids of units; with `si:` and `suffix:` it is ours.
UNITS: Final = {
    Unit.TOKENS_PER_S: "si:tok/s",
    Unit.ENGINE_SECONDS_PER_S: "suffix: s/s",
    Unit.SECONDS: "s",
    Unit.SHARE: "percentunit",
    Unit.PER_MINUTE: "cpm",
    Unit.REQUESTS: "short",
    Unit.CANDIDATES: "short",
    Unit.SCORE: "none",
    Unit.SAMPLES: "short",
}
DECIMALS: Final = {Unit.SCORE: 3, Unit.CANDIDATES: 2, Unit.SHARE: 1, Unit.SAMPLES: 0}
COLORS: Final = {Level.GOOD: "green", Level.DOUBTFUL: "orange", Level.BAD: "red"}
HEIGHTS: Final = {Kind.FIGURE: 5, Kind.LINES: 9, Kind.STACKED: 9, Kind.HEATMAP: 9}
DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
NO_DATA: Final = "no data"

AnyPanel = stat.Panel | timeseries.Panel | heatmap.Panel


def built(board: Board) -> model.Dashboard:
    """Return the board as Grafana's SDK understands it."""
    result = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["preamble", "vllm"])
        .readonly()
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable in board.variables:
        result.with_variable(_variable(variable))
    number = 1
    for row in board.rows:
        result.with_row(dashboard.Row(row.title).id(number))
        for offset, panel in enumerate(row.panels, start=1):
            result.with_panel(_panel(panel, row, number + offset))
        number += 1 + len(row.panels)
    return result.build()


def rendered(board: Board) -> str:
    """Return the dashboard's JSON, as it is committed."""
    return json.dumps(built(board), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variable(variable: Variable) -> dashboard.QueryVariable:
    every = model.VariableOption(text="All", value="$__all", selected=True)
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.title)
        .datasource(DATASOURCE)
        .query(f"label_values({variable.series}, {variable.label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(every)
    )


def _panel(panel: Panel, row: Row, number: int) -> AnyPanel:
    result: Any = {
        Kind.FIGURE: _figure,
        Kind.LINES: _lines,
        Kind.STACKED: _lines,
        Kind.HEATMAP: _heatmap,
    }[panel.kind](panel)
    result.id(number).title(panel.title).description(panel.description).datasource(DATASOURCE).no_value(NO_DATA)
    result.height(HEIGHTS[panel.kind]).span(GRID_COLUMNS // len(row.panels))
    for ref_id, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(ref_id).datasource(DATASOURCE).expr(query.expression)
        target.legend_format(query.legend)
        if panel.kind is Kind.FIGURE:
            target.instant()
        else:
            target.range()
        if panel.kind is Kind.HEATMAP:
            target.format(PromQueryFormat.HEATMAP)
        result.with_target(target)
        if query.unit is not None:
            result.override_by_query(ref_id, _of_another_unit(query.unit))
    return result  # type: ignore[no-any-return]


def _with_unit(result: Any, panel: Panel) -> None:
    result.unit(UNITS[panel.unit])
    if panel.unit in DECIMALS:
        result.decimals(DECIMALS[panel.unit])
    if panel.thresholds:
        steps = [model.Threshold(each.above, COLORS[each.level]) for each in panel.thresholds]
    else:
        steps = [model.Threshold(None, "text")]
    result.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))


def _of_another_unit(unit: Unit) -> list[model.DynamicConfigValue]:
    """Return what sets a query apart from its panel: the panel's thresholds mean nothing to it either."""
    plain = {"mode": "absolute", "steps": [{"value": None, "color": "text"}]}
    return [
        model.DynamicConfigValue("unit", UNITS[unit]),
        model.DynamicConfigValue("decimals", DECIMALS.get(unit)),
        model.DynamicConfigValue("thresholds", plain),
    ]


def _figure(panel: Panel) -> stat.Panel:
    result = (
        stat.Panel()
        .text_mode(looks.BigValueTextMode.VALUE_AND_NAME)
        .color_mode(looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )
    _with_unit(result, panel)
    return result


def _lines(panel: Panel) -> timeseries.Panel:
    stacked = panel.kind is Kind.STACKED
    result = (
        timeseries.Panel()
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(60 if stacked else 8)
        .show_points(looks.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.LIST)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(looks.TooltipDisplayMode.MULTI)
            .sort(looks.SortOrder.DESCENDING)
            .hide_zeros(stacked)
        )
    )
    _with_unit(result, panel)
    if stacked:
        result.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A"))
    if panel.thresholds:
        result.thresholds_style(common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED))
    return result


def _heatmap(panel: Panel) -> heatmap.Panel:
    scale = heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Blues").reverse(True).steps(64)
    result = (
        heatmap.Panel()
        .calculate(False)
        .color(scale.exponent(0.5).fill("dark-blue").scale(heat.HeatmapColorScale.EXPONENTIAL))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(looks.HeatmapCellLayout.LE))
        .y_axis(heatmap.YAxisConfig().unit(UNITS[panel.unit]))
        .scale_distribution(common.ScaleDistributionConfig().type(looks.ScaleDistribution.LINEAR))
        .cell_gap(1)
        .show_legend()
    )
    result.unit("short")
    return result


def main(arguments: list[str]) -> int:
    """Write or check the file; return the exit status."""
    text = rendered(BOARD)
    if arguments == ["--check"]:
        current = TARGET.exists() and TARGET.read_text() == text
        print(f"{TARGET.name} is {'current' if current else 'not current: python deploy/grafana/build.py'}")
        return 0 if current else 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    print(f"{TARGET.name}: {sum(1 for _ in BOARD.panels())} panels")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
