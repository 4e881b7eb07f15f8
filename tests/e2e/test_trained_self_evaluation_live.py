"""The embedded model with the self-evaluation that ships: it is in force, it answers, and none of it is in a reply."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from server.checkpoint import packaged_artefact
from server.checks import Status
from server.doctor_upstream import check_upstream
from server.probe import UpstreamModel
from server.self_evaluation_config import SelfEvaluationConfig, in_force
from server.settings import Settings
from server.upstream import Timeouts, UpstreamClient
from tests.conftest import Vllm
from tests.e2e.running import Preamble, User

pytestmark = pytest.mark.live

QUESTION: Final = [{"role": "user", "content": "Write two sentences about the sea."}]
_SAMPLED: Final = 2000
_AT_ONCE: Final = 10


@pytest.fixture(scope="module")
def config(vllm: Vllm) -> SelfEvaluationConfig:
    """Return what the suite's engine is asked by, if that is the trained question."""
    (served,) = json.loads(vllm.get("/v1/models"))["data"]
    found = in_force(None, UpstreamModel(served["id"], None, served["root"]))
    if found.file is None:
        # Only a developer's own engine may lack it; the one that the suite starts may not.
        assert os.environ.get("TEST_UPSTREAM_URL"), "the suite's engine is asked the trained question"
        pytest.skip("TEST_UPSTREAM_URL names another model, or another machine's")
    return found


@pytest.fixture
async def upstream(vllm: Vllm) -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient(vllm.base_url, api_key=vllm.api_key, timeouts=Timeouts(5, 60, 60, 60))
    yield client
    await client.aclose()


def ask(user: User, policy: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the `preamble` object and the trace of one sampled chat."""
    body = {"messages": QUESTION, "max_tokens": 48, "temperature": 0.9, "seed": 5, "preamble": policy}
    answer = user.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    trace = user.http.get(f"/v1/traces/{answer.json()['id']}")
    return answer.json()["preamble"], trace.json()


def test_the_checkpoint_has_the_artefacts_configuration(config: SelfEvaluationConfig) -> None:
    artefact = packaged_artefact()
    assert artefact is not None
    assert config.file is not None
    shipped = json.loads((artefact / config.file.name).read_text())
    served = json.loads(config.file.read_text())
    assert served == shipped | {"new_ids_from": config.new_ids_from}
    assert json.loads(config.file.with_name("config.json").read_text())["vocab_size"] == config.new_ids[-1] + 1


async def test_doctor_says_that_the_trained_question_is_in_force(
    config: SelfEvaluationConfig, vllm: Vllm, upstream: UpstreamClient
) -> None:
    settings = Settings.model_validate({"upstream": vllm.base_url})
    check = next(
        each
        for each in await check_upstream(settings, upstream, nonce="trained")
        if each.name.startswith("self-evaluation")
    )
    assert check.status is Status.OK, check
    assert str(config.file) in check.message
    assert config.about in check.message
    mass = re.search(r"label mass (\d\S*\d)", check.message)
    assert mass is not None
    assert float(mass[1]) >= config.min_label_mass


@pytest.mark.parametrize("scorer", ["self_evaluation", "read_out"])
def test_an_adaptive_request_is_judged_by_trained_scores(config: SelfEvaluationConfig, user: User, scorer: str) -> None:
    assert config.read_out is not None
    policy = {"mode": "adaptive", "n_max": 4, "threshold": 1.0, "scorer": scorer}
    told, trace = ask(user, policy | {"checkpoints": [{"tokens": 16, "keep": 0.5}]})
    assert (told["scorer"], told["degradations"]) == (scorer, [])
    assert told["candidates"]["drawn"] == 4
    scores = [score for each in trace["candidates"] for score in each["scores"]]
    assert len(scores) >= 4
    assert all(0 <= score["value"] <= 1 for score in scores)
    assert len({score["value"] for score in scores}) > 1, "replies are told apart"
    if scorer == "self_evaluation":
        assert max(score["label_mass"] for score in scores) >= config.min_label_mass
        assert told["tokens"]["scored"] > 0
    else:
        assert told["tokens"]["scored"] == 0


async def test_no_new_token_is_ever_sampled(config: SelfEvaluationConfig, vllm: Vllm) -> None:
    """At the highest temperature that vLLM takes; the engine is asked itself, without the proxy's guard."""
    headers = {"authorization": f"Bearer {vllm.api_key}"}
    sampled: list[int] = []
    async with httpx.AsyncClient(base_url=vllm.base_url, headers=headers, timeout=120) as client:
        for seed in range(_SAMPLED):
            body = {"model": vllm.model, "messages": QUESTION, "temperature": 2, "seed": seed, "n": _AT_ONCE}
            body |= {"max_tokens": 100, "min_tokens": 100, "return_token_ids": True}
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            sampled += [token for choice in answer.json()["choices"] for token in choice["token_ids"]]
            if len(sampled) >= _SAMPLED:
                break
    assert len(sampled) >= _SAMPLED
    assert config.new_ids_from is not None
    assert max(sampled) < config.new_ids_from


def test_the_proxy_lets_no_client_ask_for_a_new_token(
    config: SelfEvaluationConfig, vllm: Vllm, preamble: Preamble, user: User
) -> None:
    new = config.new_ids[-1]
    chat = {"model": vllm.model, "messages": QUESTION, "max_tokens": 2}
    for path, body, field in (
        ("/v1/chat/completions", chat | {"logit_bias": {str(new): 100}}, "logit_bias"),
        ("/v1/chat/completions", chat | {"allowed_token_ids": [new]}, "allowed_token_ids"),
        ("/v1/completions", {"model": vllm.model, "prompt": [1, new], "max_tokens": 1}, "prompt"),
    ):
        answer = user.http.post(path, json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == field
    lowered = user.http.post("/v1/chat/completions", json=chat | {"logit_bias": {"17": -100}})
    assert lowered.status_code == 200, lowered.text


def test_vllm_answers_prompts_of_ids_that_its_tokenizer_does_not_know(config: SelfEvaluationConfig, vllm: Vllm) -> None:
    """What scoring rests on, without the proxy: such ids in the prompt, as labels, and as the sampled token."""
    body = {"model": vllm.model, "prompt": [[1, *config.new_ids]], "max_tokens": 1, "temperature": 0, "logprobs": 1}
    body |= {"logprob_token_ids": list(config.new_ids), "return_tokens_as_token_ids": True}
    headers = {"authorization": f"Bearer {vllm.api_key}"}
    answer = httpx.post(f"{vllm.base_url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    (top,) = answer.json()["choices"][0]["logprobs"]["top_logprobs"]
    assert {f"token_id:{each}" for each in config.new_ids} <= top.keys()


def test_the_artefact_has_a_model_card(config: SelfEvaluationConfig) -> None:
    artefact = packaged_artefact()
    assert artefact is not None
    assert Path(artefact, "README.md").is_file()
