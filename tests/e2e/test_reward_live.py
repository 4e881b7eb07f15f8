"""The selector reward_model with a real vLLM that serves a pooling model, started for this test alone."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server.checks import Check, Status
from server.doctor_reward import check_reward
from server.engine import EmbeddedEngine, EngineUpstream
from server.reward import reward_upstream
from server.settings import Settings
from tests.conftest import Vllm
from tests.e2e.running import Preamble

pytestmark = pytest.mark.live

QUESTION = "Write two sentences about the sea."
POLICY = {"mode": "best_of_n", "n_max": 3, "checkpoints": [], "selector": "reward_model"}
# The language model itself as an embedding model: it is no good judge, and a real one for every part of ours.
POOLING = ("--runner", "pooling", "--convert", "embed")


def similarities(engine: EngineUpstream, asked: str, replies: list[str]) -> list[float]:
    """Return what vLLM's own /score says."""
    request = urllib.request.Request(  # noqa: S310 - our own engine's URL
        engine.base_url + "/score",
        data=json.dumps({"model": engine.model, "text_1": asked, "text_2": replies}).encode(),
        headers={"authorization": f"Bearer {engine.api_key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
        rows: list[dict[str, Any]] = json.loads(response.read())["data"]
    return [row["score"] for row in sorted(rows, key=lambda row: int(row["index"]))]


async def doctor(settings: Settings) -> Check:
    reward = reward_upstream(settings)
    assert reward is not None
    try:
        return await check_reward(reward, settings)
    finally:
        await reward.aclose()


@pytest.mark.timeout(900)  # two engines may have to start, on a machine that is busy
def test_the_reply_that_vllms_score_route_likes_best_is_returned_and_doctor_sees_how(
    vllm: Vllm, tmp_path: Path
) -> None:
    own = EmbeddedEngine.from_settings(Settings(data_dir=tmp_path / "engine", engine_args=POOLING))
    with own.running() as engine:
        settings: dict[str, object] = {"reward_upstream": engine.base_url, "reward_upstream_api_key": engine.api_key}
        with Preamble(vllm.base_url, tmp_path, upstream_api_key=vllm.api_key, settings=settings) as proxy:
            user = proxy.user()
            user.put_constitution("Speak of ships.")
            body = {"model": vllm.model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24}
            answer = user.http.post("/v1/chat/completions", json=body | {"preamble": POLICY, "seed": 11}).json()
            trace = user.http.get(f"/v1/traces/{answer['id']}").json()
            block = user.http.post("/v1/constitution/preview", json={"messages": body["messages"]}).json()
        told = answer["preamble"]
        assert (told["selector"], told["degradations"]) == ("reward_model", [])
        texts = [each["text"] for each in trace["candidates"]]
        assert len(set(texts)) > 1
        system = next(each["content"] for each in block["messages"] if each["role"] == "system")
        liked = similarities(engine, f"{system}\n\n{QUESTION}", texts)
        chosen = told["choices"][0]["candidate"]
        # Batched differently, a kernel may round differently: within that the returned one is the best.
        assert liked[chosen] == pytest.approx(max(liked), abs=1e-3)
        assert trace["scoring"] == []
        check = asyncio.run(
            doctor(Settings(reward_upstream=engine.base_url, reward_upstream_api_key=SecretStr(engine.api_key)))
        )
        assert check.status is Status.OK
        assert "through /score" in check.message
