"""A real Prometheus on a port of its own, which scrapes what a test gives it, with our rules."""

from __future__ import annotations

import http
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import httpx
import pytest
import yaml

from tests.e2e.running import ROOT, free_port, until

FOLDER: Final = ROOT / "deploy" / "prometheus"
SCRAPE_INTERVAL_S: Final = 1.0
_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 20.0
_INSTALL: Final = "is not installed; `apt-get install --no-install-recommends prometheus`"

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason=f"prometheus {_INSTALL}")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason=f"promtool {_INSTALL}")


@dataclass(slots=True)
class RunningPrometheus:
    """`prometheus` with the committed configuration, but these targets by job, and an interval of a second."""

    folder: Path
    targets: dict[str, str]
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        config = self.folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config()))
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={self.folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._ready, timeout_s=_START_TIMEOUT_S, what="Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self.folder / "prometheus.log"

    def healthy_targets(self) -> set[str]:
        """Return the jobs whose target was scraped without an error."""
        active = httpx.get(f"{self.base_url}/api/v1/targets", params={"state": "active"}).json()["data"][
            "activeTargets"
        ]
        return {target["labels"]["job"] for target in active if target["health"] == "up"}

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule that it has loaded, as its API tells them."""
        groups = httpx.get(f"{self.base_url}/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        seconds = f"{round(SCRAPE_INTERVAL_S)}s"
        config["global"] = {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": seconds}
        for name in config["rule_files"]:
            rules = yaml.safe_load((FOLDER / name).read_text())
            for group in rules["groups"]:
                group.pop("interval", None)  # some are evaluated once a minute, which is long for a test
            (self.folder / name).write_text(yaml.safe_dump(rules))
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [self.targets[job["job_name"]]]}]
        return config

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"Prometheus ended:\n{self.log_path.read_text()}"
        try:
            return httpx.get(f"{self.base_url}/-/ready").status_code == http.HTTPStatus.OK
        except httpx.TransportError:
            return False
