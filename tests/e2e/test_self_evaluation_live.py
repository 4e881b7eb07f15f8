"""What a real model says of replies, asked as the proxy asks it: `ChatSelfEvaluation` over `VllmEngine`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adaptive.candidate import Partial
from adaptive.self_evaluation import LITERAL_QUESTION
from constitutions.compose import Placement, compose_messages, render_block
from constitutions.constitution import Constitution, Principle
from server.checks import Status
from server.doctor_upstream import check_upstream
from server.probe import Scoring, tokenize
from server.self_evaluation_config import FILE, LITERAL, SelfEvaluationConfig, read_config
from server.self_evaluation_tokens import SelfEvaluationTokens
from server.settings import Settings
from server.upstream import Timeouts, UpstreamClient
from server.vllm_engine import ChatRequest, ChatSelfEvaluation, VllmEngine
from tests.conftest import Vllm

pytestmark = pytest.mark.live


@pytest.fixture
async def upstream(vllm: Vllm) -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient(vllm.base_url, api_key=vllm.api_key, timeouts=Timeouts(5, 60, 60, 60))
    yield client
    await client.aclose()


async def scores(
    upstream: UpstreamClient,
    model: str,
    principle: str,
    question: str,
    *batches: tuple[str, ...],
    config: SelfEvaluationConfig = LITERAL,
) -> list[dict[str, float]]:
    """Return P(win or tie) of each reply to that question of a user with that principle; each batch is one call."""
    chat = [{"role": "user", "content": question}]
    messages = compose_messages(chat, render_block(Constitution((Principle(principle),))), Placement.SYSTEM)
    request = ChatRequest({"model": model, "messages": messages}, (), "req-live", None, own_temperature=False)
    prompt = await tokenize(upstream, model, messages)
    assert prompt is not None
    engine = VllmEngine(upstream, request, Scoring.LOGPROB_TOKEN_IDS, 8192, prompt=prompt)
    tokens = SelfEvaluationTokens(upstream, upstream_now=lambda: 1, config_of=lambda _: config)
    scorer = ChatSelfEvaluation(engine, tokens)
    found = []
    for replies in batches:
        ids = [await tokenize(upstream, model, reply) for reply in replies]
        judged = await scorer.score([Partial(token_ids=each) for each in ids if each is not None])
        assert all((score.label_mass or 0) > 0.2 for score in judged)
        found.append(dict(zip(replies, (score.value for score in judged), strict=True)))
    return found


# Found by trying on SmolLM2-135M-Instruct: of nine questions with four ways to put a principle most pairs are as far
# apart whatever the constitution, as so small a model hardly hears it. Here it is three steps of bfloat16.
ASKED, ONE, OTHER = "Tell me about the sea.", "The sea is big.", "Arr, the sea be mighty, matey!"


async def test_of_the_same_two_replies_the_users_own_constitution_says_more_for_the_one_it_wants(
    upstream: UpstreamClient, vllm: Vllm
) -> None:
    """Which of the two is ahead may be a tie of bfloat16, rounded otherwise by another CPU; what a constitution does to
    the distance between them is not."""

    async def ahead(wanted: str) -> float:
        """Return how far `ONE` is ahead of `OTHER` for who wants that one, on average over orders."""
        principle = f"I like the answer {wanted} and hate all others."
        found = await scores(upstream, vllm.model, principle, ASKED, (ONE, OTHER), (OTHER, ONE))
        return sum(each[ONE] - each[OTHER] for each in found) / len(found)

    # By more than a step of bfloat16 (an eighth, in logits of this size).
    assert await ahead(ONE) > await ahead(OTHER) + 0.04


async def test_the_literal_question_written_as_token_ids_scores_as_it_does_in_words(
    upstream: UpstreamClient, vllm: Vllm, tmp_path: Path
) -> None:
    words = await SelfEvaluationTokens(upstream, upstream_now=lambda: 1).of(vllm.model)
    ids = {
        "format": 1,
        "suffix_ids": words.suffix,
        "win_or_tie_ids": words.labels.win_or_tie,
        "loss_ids": words.labels.loss,
    }
    (tmp_path / FILE).write_text(json.dumps(ids))
    config = read_config(tmp_path)
    told = await SelfEvaluationTokens(upstream, upstream_now=lambda: 1, config_of=lambda _: config).of(vllm.model)
    assert (told.suffix, told.labels, told.end_id) == (words.suffix, words.labels, words.end_id)
    assert told.ends_the_turn
    in_words = await scores(upstream, vllm.model, "Be brief.", "Name a colour.", ("Red.",))
    in_ids = await scores(upstream, vllm.model, "Be brief.", "Name a colour.", ("Red.",), config=config)
    assert in_ids == in_words


async def test_doctor_names_the_file_in_force_and_what_vllm_says_of_ids_that_the_model_lacks(
    upstream: UpstreamClient, vllm: Vllm, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"upstream": vllm.base_url, "self_evaluation": tmp_path})
    question = {"question": LITERAL_QUESTION.text, "win_or_tie": ["No", "no"], "loss": ["Yes", "yes"]}
    (tmp_path / FILE).write_text(json.dumps({"format": 1} | question))
    check = (await check_upstream(settings, upstream, nonce="live"))[-1]
    assert check.status is Status.OK, check
    assert f"By {tmp_path / FILE}: P(win or tie) 0." in check.message
    beyond = {"suffix_ids": [2, 1], "win_or_tie_ids": [10_000_000], "loss_ids": [5]}
    (tmp_path / FILE).write_text(json.dumps({"format": 1} | beyond))
    check = (await check_upstream(settings, upstream, nonce="live"))[-1]
    assert check.status is Status.WARNING
    assert "out-of-vocab" in check.message
