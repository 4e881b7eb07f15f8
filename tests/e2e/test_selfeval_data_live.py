"""`preamble selfeval data` on a real vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptive.training.examples import GroupFile
from tests.conftest import Vllm
from tests.e2e.test_cli_live import run

pytestmark = pytest.mark.live


def test_answers_are_sampled_with_their_tokens_and_kept(vllm: Vllm, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["selfeval", "data", "--out", str(out), "--tasks", "ifeval", "--limit", "3", "--n", "4"]
    arguments += ["--max-tokens", "24", "--upstream", vllm.base_url, "--data-dir", str(tmp_path), "--json"]
    status, said, err = run(tmp_path, *arguments, UPSTREAM_API_KEY=vllm.api_key)
    assert status == 0, err
    card = json.loads(said)
    assert card["model"]["name"] == vllm.model
    assert card["model"]["fingerprint"].startswith("vllm-")
    assert card["prompts_lost"] == 0
    groups = list(GroupFile(out / "examples.jsonl"))
    assert [len(group.answers) for group in groups] == [4, 4, 4]
    for group in groups:
        assert group.prompt_ids
        assert len({answer.token_ids for answer in group.answers}) > 1  # each has a seed of its own
        for answer in group.answers:
            assert 0 < len(answer.token_ids) <= 24
            assert all(logprob <= 0 for logprob in answer.logprobs)
    kept = (out / "answers.jsonl").read_bytes()
    status, again, err = run(tmp_path, *arguments, UPSTREAM_API_KEY=vllm.api_key)
    assert status == 0, err
    assert (out / "answers.jsonl").read_bytes() == kept
    assert json.loads(again)["counts"] == card["counts"]


def test_logged_preferences_get_the_tokens_and_log_probabilities_of_the_model(vllm: Vllm, tmp_path: Path) -> None:
    out, pairs = tmp_path / "out", tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "What is 2+2?", "chosen": "It is 4.", "rejected": "Banana helicopter."}))
    arguments = ["selfeval", "data", "--out", str(out), "--preferences", str(pairs), "--reward", "preferences"]
    arguments += ["--upstream", vllm.base_url, "--data-dir", str(tmp_path)]
    status, _, err = run(tmp_path, *arguments, UPSTREAM_API_KEY=vllm.api_key)
    assert status == 0, err
    ((chosen, rejected),) = (group.answers for group in GroupFile(out / "examples.jsonl"))
    assert (chosen.win_or_tie, rejected.win_or_tie) == (1.0, 0.0)
    assert sum(chosen.logprobs) > sum(rejected.logprobs)
