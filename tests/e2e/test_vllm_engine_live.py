"""What the sampling loop takes for granted about vLLM, asked of vLLM itself: ids, prefix cache, scores, read-outs."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from adaptive.engine import GeneratedTokens, Sampling, TokenIds
from server.probe import Scoring
from server.upstream import Timeouts, UpstreamClient
from server.vllm_engine import ChatRequest, VllmEngine
from tests.conftest import Vllm

pytestmark = pytest.mark.live

YES, NO = 10919, 4607  # any two tokens would do; how likely they are is asked in several ways
BLOCK_TOKENS = 32
TEXT = "The tide comes in and goes out twice a day, pulled by the moon and by the sun. "


@pytest.fixture
async def upstream(vllm: Vllm) -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient(vllm.base_url, api_key=vllm.api_key, timeouts=Timeouts(5, 60, 60, 60))
    yield client
    await client.aclose()


def engine(vllm: Vllm, upstream: UpstreamClient, *, salt: str, scoring: Scoring, **fields: Any) -> VllmEngine:
    messages = [{"role": "user", "content": TEXT * 8 + "Say more about it."}]
    body = {"model": vllm.model, "messages": messages, "cache_salt": salt} | fields
    request = ChatRequest(body, (), f"test-{secrets.token_hex(4)}", max_tokens=None, own_temperature=True)
    return VllmEngine(upstream, request, scoring=scoring, max_model_len=8192)


async def generated(of: VllmEngine, index: int, tokens: int, readout_ids: TokenIds = ()) -> list[GeneratedTokens]:
    sampling = Sampling(index, 0.9, 100 + index, tokens, readout_ids=readout_ids)
    async with aclosing(of.generate((), sampling)) as stream:
        return [step async for step in stream]


def ids(steps: list[GeneratedTokens]) -> TokenIds:
    return tuple(token for step in steps for token in step.token_ids)


async def test_candidates_drawn_together_have_the_same_prompt_tokens_and_compute_them_once(
    vllm: Vllm, upstream: UpstreamClient
) -> None:
    salt = secrets.token_hex(8)
    each = [engine(vllm, upstream, salt=salt, scoring=Scoring.LOGPROB_TOKEN_IDS) for _ in range(4)]
    await asyncio.gather(*(generated(one, index, 4) for index, one in enumerate(each)))
    assert len({one.prompt for one in each}) == 1
    prompt = len(each[0].prompt)
    assert prompt > 5 * BLOCK_TOKENS
    cached = [one.usages[index]["prompt_tokens_details"]["cached_tokens"] for index, one in enumerate(each)]
    # The first computes all of it; the others all but the block that is not full.
    assert min(cached) < BLOCK_TOKENS
    assert sorted(cached)[1] > prompt - 2 * BLOCK_TOKENS


async def test_a_candidate_is_scored_from_the_cache_while_it_is_still_generated(
    vllm: Vllm, upstream: UpstreamClient
) -> None:
    one = engine(vllm, upstream, salt=secrets.token_hex(8), scoring=Scoring.LOGPROB_TOKEN_IDS, ignore_eos=True)
    tokens: list[int] = []
    async with aclosing(one.generate((), Sampling(0, 0.9, 1, 200))) as stream:
        async for step in stream:
            tokens += step.token_ids
            if len(tokens) >= BLOCK_TOKENS + 8:  # so that at least one block is all its own
                break
        (reading,) = await one.score([(*one.prompt, *tokens, *range(100, 110))], (NO, YES))
        further = await anext(stream)
    assert reading.computed_tokens <= BLOCK_TOKENS + 10
    assert all(-100 < logprob < 0 for logprob in reading.logprobs)
    assert further.token_ids


async def test_both_ways_to_score_read_the_same_odds(vllm: Vllm, upstream: UpstreamClient) -> None:
    salt = secrets.token_hex(8)
    newer = engine(vllm, upstream, salt=salt, scoring=Scoring.LOGPROB_TOKEN_IDS)
    older = engine(vllm, upstream, salt=salt, scoring=Scoring.GENERATIVE_SCORING)
    replies = [ids(await generated(newer, index, 12)) for index in range(2)]
    await generated(older, 0, 1)
    sequences = [(*newer.prompt, *reply) for reply in replies]
    shares = []
    for one in (newer, older):
        readings = await one.score(sequences, (NO, YES))
        shares.append([1 / (1 + math.exp(yes - no)) for no, yes in (reading.logprobs for reading in readings)])
    assert shares[0] == pytest.approx(shares[1], rel=0.1)
    assert shares[0][0] != pytest.approx(shares[0][1], rel=1e-6)


async def test_a_read_out_of_any_tokens_rides_on_the_stream_and_is_what_a_score_would_have_read(
    vllm: Vllm, upstream: UpstreamClient
) -> None:
    one = engine(vllm, upstream, salt=secrets.token_hex(8), scoring=Scoring.LOGPROB_TOKEN_IDS)
    labels = (17, 31_337, NO)
    steps = await generated(one, 0, 8, labels)
    tokens = ids(steps)
    readouts = [readout for step in steps for readout in step.readouts]
    assert len(readouts) == len(tokens)
    # A read-out at a token is what the model thought of the labels when it drew that token.
    (reading,) = await one.score([(*one.prompt, *tokens[:5])], labels)
    assert readouts[5] == pytest.approx(reading.logprobs, abs=0.5)
    assert readouts[5] != pytest.approx(readouts[4], abs=0.5)


def test_long_prompts_with_seeds_do_not_end_the_engine(vllm: Vllm) -> None:
    """vLLM 0.32 on a CPU dies where such a prompt is computed in pieces: see `server/engine_command.py`."""

    def ask(place: int) -> int:
        text = f"{place} " + "word " * 2500
        body = {"model": vllm.model, "messages": [{"role": "user", "content": text}], "max_tokens": 2, "seed": place}
        headers = {"authorization": f"Bearer {vllm.api_key}"}
        answer = httpx.post(f"{vllm.base_url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        return answer.status_code

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [200, 200, 200]
    assert vllm.get("/health") == b""
