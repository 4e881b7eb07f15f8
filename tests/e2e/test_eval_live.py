"""`preamble eval` on a real vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Vllm
from tests.e2e.test_cli_live import run

pytestmark = pytest.mark.live


def test_an_evaluation_samples_scores_and_reports_and_goes_on_where_it_was(vllm: Vllm, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "ifeval", "--n", "2", "--max-tokens", "24", "--checkpoints", "8", "--out", str(out)]
    arguments += ["--upstream", vllm.base_url, "--data-dir", str(tmp_path)]
    status, _, err = run(tmp_path, *arguments, "--limit", "1", UPSTREAM_API_KEY=vllm.api_key)
    assert status == 0, err
    kept = (out / "candidates.jsonl").read_text()
    status, _, err = run(tmp_path, *arguments, "--limit", "2", UPSTREAM_API_KEY=vllm.api_key)
    assert status == 0, err
    assert "Sampling 2 of 4 candidates" in err
    lines = (out / "candidates.jsonl").read_text()
    assert lines.startswith(kept)
    candidates = [json.loads(line) for line in lines.splitlines()]
    assert len(candidates) == 4
    for candidate in candidates:
        assert candidate["failures"] == []
        assert candidate["setup"]["fingerprint"].startswith("vllm-")
        own = [score for score in candidate["scores"] if score["scorer"] == "self_evaluation"]
        assert len(candidate["logprobs"]) == len(candidate["token_ids"])
        assert len(own) == (2 if len(candidate["token_ids"]) > 8 else 1)
        for score in own:
            assert 0 < score["value"] < 1
            assert score["label_mass"] > 0
            # Computed is the question and what does not fill a block; the rest comes from the prefix cache.
            assert 0 < score["computed_tokens"] < len(candidate["prompt_ids"]) + score["tokens"]
    report = json.loads((out / "report.json").read_text())
    assert report["dataset"]["prompts"] == 2
    assert report["model"]["name"] == vllm.model
