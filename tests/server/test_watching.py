"""What `preamble serve` prints about watching it."""

from __future__ import annotations

from pathlib import Path

from server.watching import DEPLOY, how_to_watch

PROXY = "http://127.0.0.1:8080"
ENGINE = "http://127.0.0.1:8000"


def test_where_prometheus_looks_for_both_nothing_need_be_changed() -> None:
    lines = how_to_watch(PROXY, ENGINE, here=DEPLOY.parent)
    assert [line.split()[0] for line in lines] == ["To", "metrics", "Prometheus", "Grafana", "no"]
    assert "http://127.0.0.1:8080/metrics" in lines[1]
    assert "preamble report savings --out savings.html" in lines[4]


def test_every_path_that_is_printed_exists(tmp_path: Path) -> None:
    for here in (DEPLOY.parent, tmp_path):
        words = " ".join(how_to_watch(PROXY, ENGINE, here=here)).replace("(", " ").replace(")", " ").replace(",", " ")
        paths = [word.rpartition("=")[2] for word in words.split() if "deploy/" in word]
        assert len(paths) == 4
        assert all((here / path).exists() for path in paths)


def test_elsewhere_it_says_which_targets_to_change() -> None:
    lines = how_to_watch("http://127.0.0.1:9000", "http://gpu-box:8000", here=DEPLOY.parent)
    changes = [line.strip() for line in lines if "change" in line]
    assert changes == [
        "there change the target of job preamble, 127.0.0.1:8080, to 127.0.0.1:9000",
        "there change the target of job vllm, 127.0.0.1:8000, to gpu-box:8000",
    ]


def test_localhost_is_this_machine_and_a_url_may_have_no_port() -> None:
    assert len(how_to_watch("http://localhost:8080", "http://localhost:8000", here=DEPLOY.parent)) == 5
    assert "to example.org:443" in how_to_watch(PROXY, "https://example.org", here=DEPLOY.parent)[3]


def test_without_the_folder_only_what_needs_no_file_of_it_is_named(tmp_path: Path) -> None:
    lines = how_to_watch(PROXY, ENGINE, deploy=tmp_path / "deploy")
    assert [line.split()[0] for line in lines] == ["To", "metrics", "no"]
