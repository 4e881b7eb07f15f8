"""Every query of the Grafana board, asked of a real Prometheus that scrapes a real proxy and a real vLLM under load."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from server.panels import Window
from tests.conftest import Vllm
from tests.e2e.prometheus import SCRAPE_INTERVAL_S, RunningPrometheus, needs_prometheus
from tests.e2e.running import ROOT, Preamble, User, until

pytestmark = [pytest.mark.live, needs_prometheus]

DASHBOARD: Final = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "savings.json").read_text())
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUESTIONS: Final = (
    "Write two sentences about the sea.",
    "Name three fruits and say what they taste like.",
    "Why do leaves fall in autumn?",
)
CHECKPOINTS: Final = [{"tokens": 12, "keep": 0.5}]
ADAPTIVE: Final = {"mode": "adaptive", "n_max": 3, "threshold": 0.97, "checkpoints": CHECKPOINTS}
BEST_OF_3: Final = {"mode": "best_of_n", "n_max": 3, "checkpoints": CHECKPOINTS}
FINISHED: Final = 'preamble_explorations_total{result="done"}'


@dataclass(frozen=True, slots=True)
class Watched:
    """A Prometheus that saw a load. started, ended: Unix times around it. explored: samples that the proxy counts."""

    prometheus: RunningPrometheus
    started: float
    ended: float
    explored: int

    @property
    def window(self) -> Window:
        """The board's variables for that time."""
        return Window(self.ended - self.started, SCRAPE_INTERVAL_S, SCRAPE_INTERVAL_S)

    def answers(self, target: dict[str, Any]) -> list[list[float]]:
        """Return the values of every series that a panel's query finds, as Grafana would ask."""
        expression = self.window.filled_in(target["expr"], {"proxy": ".*", "engine": ".*"})
        assert "$" not in expression
        if target["instant"]:
            what, when = "query", {"time": self.ended}
        else:
            what, when = "query_range", {"start": self.started, "end": self.ended, "step": SCRAPE_INTERVAL_S}
        answer = httpx.get(f"{self.prometheus.base_url}/api/v1/{what}", params={"query": expression, **when}).json()
        assert answer["status"] == "success", f"{expression}: {answer['error']}"
        found = answer["data"]["result"]
        return [[float(value) for _, value in each.get("values") or [each["value"]]] for each in found]


@pytest.fixture(scope="module")
def watched(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    settings: dict[str, object] = {"exploration_share": 1, "max_explorations": 8}
    proxy = Preamble(
        vllm.base_url, tmp_path_factory.mktemp("watched"), upstream_api_key=vllm.api_key, settings=settings
    )
    with proxy:
        targets = {"preamble": proxy.base_url.removeprefix("http://"), "vllm": vllm.base_url.removeprefix("http://")}
        with RunningPrometheus(tmp_path_factory.mktemp("prometheus"), targets) as prometheus:
            until(lambda: prometheus.healthy_targets() == set(targets), timeout_s=20, what="both are scraped")
            started = time.time()
            put_load(proxy.user(), vllm.model)
            explored = settled(lambda: int(proxy.metric(FINISHED)), at_least=2)
            time.sleep(3 * SCRAPE_INTERVAL_S)  # the last of it is scraped
            yield Watched(prometheus, started, time.time(), explored)


def settled(count: Callable[[], int], at_least: int) -> int:
    """Return a count that has not moved for two seconds: explorations go on after their request is answered."""
    deadline = time.monotonic() + 60
    before, now = -1, count()
    while now < at_least or now != before:
        assert time.monotonic() < deadline, f"still at {now}"
        time.sleep(2)
        before, now = now, count()
    return now


def put_load(user: User, model: str) -> None:
    """Send chats of every kind that the board tells apart, three at a time, over some scrapes."""
    kinds: tuple[dict[str, Any], ...] = (
        {"preamble": ADAPTIVE},
        {"preamble": ADAPTIVE, "stream": True},
        {"preamble": BEST_OF_3},
        {"preamble": BEST_OF_3, "temperature": 0},
    )
    bodies = [
        {"model": model, "max_tokens": 24, "temperature": 0.9, "messages": [{"role": "user", "content": question}]}
        | kind
        for question in QUESTIONS
        for kind in kinds
    ]
    with ThreadPoolExecutor(3) as pool:
        for answer in pool.map(lambda body: user.http.post("/v1/chat/completions", json=body), bodies):
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_of_the_panel_finds_data(watched: Watched, panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        found = watched.answers(target)
        assert found, f"no data: {target['expr']}"
        assert all(math.isfinite(value) for values in found for value in values), target["expr"]


def test_what_the_board_shows_adds_up(watched: Watched) -> None:
    def shown(title: str) -> list[list[list[float]]]:
        (panel,) = (each for each in PANELS if each["title"] == title)
        return [watched.answers(target) for target in panel["targets"]]

    assert max(map(max, shown("Tokens by fate")[0])) > 0
    ((candidates,),) = shown("Candidates per request")[0]
    assert 1 <= candidates <= 3 + 1e-9  # a quotient of rates
    assert any(value > 0 for values in shown("Pruned, by checkpoint")[0] for value in values)
    ((share,),), ((samples,),) = shown("Saved share, measured")
    assert share < 1
    assert abs(samples - watched.explored) <= 1 + 0.1 * watched.explored  # Prometheus extrapolates to the range's edges


def test_every_recorded_rule_has_data_and_no_rule_fails(watched: Watched) -> None:
    until(
        lambda: all(rule["health"] == "ok" for rule in watched.prometheus.rules()),
        timeout_s=20,
        what="every rule was evaluated",
    )
    names = [rule["name"] for rule in watched.prometheus.rules() if rule["type"] == "recording"]
    assert len(names) >= 15
    for name in names:
        answer = httpx.get(f"{watched.prometheus.base_url}/api/v1/query", params={"query": name}).json()
        # Of scoring that never failed there is no series yet.
        assert answer["data"]["result"] or "degradations" in name, name
    assert not [rule["name"] for rule in watched.prometheus.rules() if rule.get("state") == "firing"]


def test_the_report_draws_the_same_without_grafana(watched: Watched, tmp_path: Path) -> None:
    def ran(*options: str) -> str:
        command = [sys.executable, "-m", "server", "report", "savings", "--prometheus", watched.prometheus.base_url]
        command += ["--start", str(watched.started), "--end", str(watched.ended), "--scrape-interval", "1s", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = json.loads(ran("--json", "--out", str(tmp_path / "savings.png")))
    assert (tmp_path / "savings.png").read_bytes().startswith(b"\x89PNG")
    assert not [panel["title"] for panel in told["panels"] if not panel["series"]]
    assert not [figure for figure in told["figures"] if figure["value"] is None]
    assert "Candidates per request" in ran("--out", str(tmp_path / "savings.html"))
    page = (tmp_path / "savings.html").read_text()
    assert page.count("data:image/svg+xml") == len(told["panels"])
    assert ">no data<" not in page
