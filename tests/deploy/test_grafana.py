"""The committed Grafana files, read as Grafana would read them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from server.board import BOARD
from server.panels import Kind

ROOT: Final = Path(__file__).resolve().parents[2]
GRAFANA: Final = ROOT / "deploy" / "grafana"
TEXT: Final = (GRAFANA / "dashboards" / "savings.json").read_text()
DASHBOARD: Final[dict[str, Any]] = json.loads(TEXT)
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def test_the_committed_board_is_what_the_builder_writes() -> None:
    build = [sys.executable, str(GRAFANA / "build.py"), "--check"]
    ran = subprocess.run(build, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}; `make board` writes it"


def test_the_builder_says_so_when_the_file_is_another(tmp_path: Path) -> None:
    copy = tmp_path / "build.py"
    copy.write_text((GRAFANA / "build.py").read_text())
    ran = subprocess.run([sys.executable, str(copy), "--check"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ran.returncode, "python deploy/grafana/build.py" in ran.stdout) == (1, True)


def test_grafanas_own_types_read_it_and_write_the_same() -> None:
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == DASHBOARD


def test_it_is_of_the_schema_of_grafana_11_6_and_has_an_identity() -> None:
    assert DASHBOARD["schemaVersion"] == 41
    assert re.fullmatch(r"[a-zA-Z0-9_-]{8,40}", DASHBOARD["uid"])
    assert DASHBOARD["title"] == BOARD.title
    assert "id" not in DASHBOARD  # Grafana gives its own


def test_ids_are_unique_and_panels_are_those_of_the_board_in_its_order() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert [panel["title"] for panel in PANELS] == [panel.title for panel in BOARD.panels()]
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [row.title for row in BOARD.rows]


def test_panels_lie_inside_the_grid_and_none_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height  # and there is no hole


def test_the_top_row_fits_a_screen_and_has_the_four_headlines() -> None:
    top = [panel["title"] for panel in PANELS if panel["gridPos"]["y"] < 6]
    for headline in ("Saved share, estimated", "Saved tokens", "Candidates per request", "Regret, measured"):
        assert headline in top


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_asks_the_chosen_datasource_and_is_described(panel: dict[str, Any]) -> None:
    (of_the_board,) = (each for each in BOARD.panels() if each.title == panel["title"])
    assert panel["datasource"] == DATASOURCE
    assert panel["description"] == of_the_board.description
    assert [target["expr"] for target in panel["targets"]] == [query.expression for query in of_the_board.queries]
    assert [target["legendFormat"] for target in panel["targets"]] == [query.legend for query in of_the_board.queries]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["instant"] is (of_the_board.kind is Kind.FIGURE)
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["noValue"] == "no data"
    expected = {Kind.FIGURE: "stat", Kind.LINES: "timeseries", Kind.STACKED: "timeseries", Kind.HEATMAP: "heatmap"}
    assert panel["type"] == expected[of_the_board.kind]


def test_a_query_of_another_unit_has_it_and_none_of_the_panels_thresholds() -> None:
    (regret,) = (panel for panel in PANELS if panel["title"] == "Regret, measured")
    (override,) = regret["fieldConfig"]["overrides"]
    assert override["matcher"] == {"id": "byFrameRefID", "options": "B"}
    told = {each["id"]: each["value"] for each in override["properties"]}
    assert (told["unit"], told["decimals"], len(told["thresholds"]["steps"])) == ("short", 0, 1)


def test_every_variable_that_a_query_uses_can_be_chosen() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", TEXT)) - {"__all"}
    assert used == set(variables)
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("proxy", "engine"):
        assert variables[name]["datasource"] == DATASOURCE
        assert (variables[name]["multi"], variables[name]["includeAll"], variables[name]["allValue"]) == (
            True,
            True,
            ".*",
        )


def test_provisioning_names_a_prometheus_and_the_folder_of_the_board() -> None:
    (datasource,) = yaml.safe_load((GRAFANA / "provisioning/datasources/preamble.yml").read_text())["datasources"]
    assert (datasource["type"], datasource["url"]) == ("prometheus", "http://127.0.0.1:9090")
    scraping = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert datasource["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/preamble.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] in (ROOT / "deploy" / "README.md").read_text()


def test_every_panel_is_in_the_docs_in_the_order_of_the_board() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [A-Z]", (GRAFANA / "README.md").read_text(), re.MULTILINE)
    assert rows == [panel.title for panel in BOARD.panels()]
