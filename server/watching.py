"""How an operator watches a proxy that runs: its metrics, Prometheus, the Grafana board, and the report without it."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

DEPLOY: Final = Path(__file__).resolve().parent.parent / "deploy"
# What deploy/prometheus/prometheus.yml scrapes; a test holds them together.
SCRAPED_PROXY: Final = "127.0.0.1:8080"
SCRAPED_ENGINE: Final = "127.0.0.1:8000"


def how_to_watch(base_url: str, upstream: str | None, *, deploy: Path = DEPLOY, here: Path | None = None) -> list[str]:
    """Return the lines to print. upstream: base URL of vLLM. here: the directory that paths are shown from.

    Without the folder `deploy`, as in an installed wheel, only what needs no file of it is named.
    """
    lines = ["To watch it:", f"  metrics     {base_url}/metrics"]
    if deploy.is_dir():
        folder = _shown(deploy, here or Path.cwd())
        lines.append(
            f"  Prometheus  prometheus --config.file={folder}/prometheus/prometheus.yml "
            "--storage.tsdb.path=.preamble/prometheus"
        )
        lines += [f"              {remark}" for remark in _wrong_targets(base_url, upstream)]
        lines.append(
            f"  Grafana     {folder}/grafana/dashboards/savings.json, provisioned by {folder}/grafana/provisioning "
            f"({folder}/README.md)"
        )
    lines.append("  no Grafana  preamble report savings --out savings.html draws the same panels from Prometheus")
    return lines


def _wrong_targets(base_url: str, upstream: str | None) -> list[str]:
    wrong = []
    for job, url, scraped in (("preamble", base_url, SCRAPED_PROXY), ("vllm", upstream, SCRAPED_ENGINE)):
        if url is not None and (found := _address(url)) != scraped:
            wrong.append(f"there change the target of job {job}, {scraped}, to {found}")
    return wrong


def _address(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.netloc.removesuffix(f":{port}")
    return f"{'127.0.0.1' if host == 'localhost' else host}:{port}"


def _shown(path: Path, here: Path) -> str:
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
