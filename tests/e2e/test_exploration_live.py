"""Explorations on a real vLLM: what is exported is what was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Vllm
from tests.e2e.running import Preamble, until

pytestmark = pytest.mark.live

QUESTION = [{"role": "user", "content": "Write two sentences about the sea."}]
ADAPTIVE = {"mode": "adaptive", "n_max": 3, "threshold": 0.0, "checkpoints": []}
PRUNING = {"mode": "best_of_n", "n_max": 3, "checkpoints": [{"tokens": 8, "keep": 0.5}]}
DONE = 'preamble_explorations_total{result="done"}'


def test_the_exported_figures_are_those_of_the_explorations_in_the_traces(vllm: Vllm, tmp_path: Path) -> None:
    # Two workers, so that the figures of both have to be added up; others use this engine too, so its queue may be
    # deep for reasons of their own.
    settings: dict[str, object] = {"exploration_share": 1, "max_explorations": 4, "load_low": 500, "load_high": 1000}
    with Preamble(vllm.base_url, tmp_path, upstream_api_key=vllm.api_key, workers=2, settings=settings) as proxy:
        user = proxy.user()
        answers: list[dict[str, Any]] = []
        for count, policy in enumerate((ADAPTIVE, PRUNING, ADAPTIVE | {"n_max": 2}), 1):
            body = {"model": vllm.model, "messages": QUESTION, "max_tokens": 24, "temperature": 0.9, "preamble": policy}
            answers.append(user.http.post("/v1/chat/completions", json=body).json())
            until(lambda count=count: proxy.metric(DONE) == count, timeout_s=30, what=f"{count} explorations are done")  # type: ignore[misc]

        def told() -> list[dict[str, Any]]:
            traces = [user.http.get(f"/v1/traces/{answer['id']}").json() for answer in answers]
            return [trace["exploration"] for trace in traces if "exploration" in trace]

        until(lambda: len(told()) == len(answers), timeout_s=5, what="every trace tells of its exploration")
        sections = told()
        assert [len(section["candidates"]) for section in sections] == [3, 3, 2]
        spent = [answer["preamble"]["tokens"] for answer in answers]
        for name, figure in (
            ("exploration_full_tokens_total", sum(each["tokens"]["best_of_n"] for each in sections)),
            ("exploration_spent_tokens_total", sum(each["generated"] + each["scored"] for each in spent)),
            ("exploration_full_engine_seconds_total", sum(each["engine_seconds"]["best_of_n"] for each in sections)),
            ("exploration_spent_engine_seconds_total", sum(each["engine_seconds"]["spent"] for each in sections)),
            ("regret_sum", sum(each["regret"] for each in sections)),
            ("regret_count", len(answers)),
        ):
            assert proxy.metric(f"preamble_{name}") == pytest.approx(figure), name
        assert all(0 <= each["regret"] <= 1 and each["engine_seconds"]["best_of_n"] > 0 for each in sections)
        tokens = sum(candidate["tokens"] for section in sections for candidate in section["candidates"])
        assert proxy.metric('preamble_candidate_tokens_total{fate="exploration"}') > tokens
        # The clients' own series know nothing of them.
        drawn = sum(answer["preamble"]["candidates"]["drawn"] for answer in answers)
        sums = [
            proxy.metric(f'preamble_candidates_per_request_sum{{mode="{mode}"}}') for mode in ("adaptive", "best_of_n")
        ]
        assert sum(sums) == drawn == 1 + 3 + 1
        assert "exploration_failed" not in proxy.log()
