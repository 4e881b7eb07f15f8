"""Probing finds out what an upstream can do, and survives whatever it does instead of answering."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from constitutions.compose import Placement
from server.probe import Scoring, UpstreamModel, UpstreamProfile, count_tokens, probe, score_labels, tokenize
from tests.server import scripted_upstream as scripted
from tests.server.scripted_upstream import MODEL, SCORED_LOGPROB, Answers, ScriptedUpstream, fixed


def upstream(**changed: Answers | None) -> ScriptedUpstream:
    """Return a working upstream with some answers changed, `v1_models` meaning `/v1/models`, None taking one away."""
    routes = scripted.working_routes()
    paths = {path.strip("/").replace("/", "_"): path for path in routes}
    for name, answer in changed.items():
        routes.pop(paths[name])
        if answer is not None:
            routes[paths[name]] = answer
    return ScriptedUpstream(routes)


async def test_a_full_vllm_is_recognised_in_everything() -> None:
    assert await probe(upstream()) == UpstreamProfile(
        reachable=True,
        version="0.32.0",
        models_status=200,
        models=(UpstreamModel(MODEL, 8192),),
        honours_system=True,
        prefix_caching=True,
        block_size=32,
        cached_token_details=True,
        scoring=Scoring.LOGPROB_TOKEN_IDS,
    )


async def test_an_upstream_that_is_down_is_an_answer_and_no_error() -> None:
    assert await probe(upstream(version=scripted.refused_connection)) == UpstreamProfile(reachable=False)


async def test_an_upstream_that_goes_away_half_way_leaves_the_rest_unknown() -> None:
    gone = scripted.refused_connection
    profile = await probe(upstream(tokenize=gone, metrics=gone, v1_completions=gone, generative_scoring=gone))
    assert profile.reachable
    assert profile.model_names == (MODEL,)
    assert (profile.honours_system, profile.prefix_caching, profile.scoring) == (None, None, None)
    assert profile.placement is Placement.SYSTEM


async def test_a_refused_key_shows_in_the_status_of_the_models() -> None:
    asked = upstream(v1_models=fixed(401, {"error": "Unauthorized"}))
    profile = await probe(asked)
    assert (profile.reachable, profile.models_status, profile.models) == (True, 401, ())
    assert [path for path, _ in asked.asked] == ["/version", "/v1/models"]


@pytest.mark.parametrize("template", [scripted.tokenize_without_system, scripted.tokenize_dropping_system])
async def test_a_template_without_a_system_role_moves_the_constitution_to_the_user_turn(template: Answers) -> None:
    profile = await probe(upstream(tokenize=template))
    assert profile.honours_system is False
    assert profile.placement is Placement.FIRST_USER


async def test_a_model_without_any_template_leaves_the_question_open() -> None:
    profile = await probe(upstream(tokenize=fixed(400, {"error": {"message": "no chat template"}})))
    assert profile.honours_system is None


@pytest.mark.parametrize("missing", ["tokenize", "detokenize"])
async def test_without_the_tokenizer_routes_the_system_message_is_used(missing: str) -> None:
    profile = await probe(upstream(**{missing: None}))
    assert profile.honours_system is None
    assert profile.placement is Placement.SYSTEM


async def test_prefix_caching_that_is_off_is_seen() -> None:
    profile = await probe(upstream(metrics=scripted.cache_config(enabled=False, block_size=128)))
    assert (profile.prefix_caching, profile.block_size) == (False, 128)


async def test_cache_metrics_that_say_nothing_leave_it_unknown() -> None:
    assert (await probe(upstream(metrics=None))).prefix_caching is None
    assert (await probe(upstream(metrics=scripted.cache_config(block_size="None")))).block_size is None


async def test_an_older_vllm_scores_by_its_own_route_if_it_has_one() -> None:
    older = scripted.complete_as_older_vllm
    assert (await probe(upstream(v1_completions=older))).scoring is Scoring.GENERATIVE_SCORING
    assert (await probe(upstream(v1_completions=older, generative_scoring=None))).scoring is Scoring.NONE


async def test_the_version_is_optional() -> None:
    profile = await probe(upstream(version=None))
    assert (profile.reachable, profile.version, profile.model_names) == (True, None, (MODEL,))


words = st.sampled_from(["", "x", "id", "tokens"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
known_keys = {"data": json_values, "tokens": json_values, "prompt": json_values, "version": json_values}
shapes = st.one_of(
    json_values,
    st.fixed_dictionaries(known_keys),
    st.fixed_dictionaries(
        {"choices": st.lists(st.fixed_dictionaries({"logprobs": json_values})), "usage": json_values}
    ),
)


SCORED = [{"logprobs": {"top_logprobs": [{"token_id:0": -1.0, "token_id:1": -1.0}]}}]


@settings(max_examples=300)
@given(st.sampled_from(sorted(scripted.working_routes())), st.sampled_from([200, 400, 404, 500]), shapes)
@example("/v1/completions", 200, {"choices": SCORED, "usage": "none"})
@example("/v1/completions", 200, {"choices": SCORED, "usage": {"prompt_tokens_details": [1]}})
@example("/tokenize", 200, {"tokens": ["x", None]})
@example("/v1/models", 200, {"data": [{"id": "odd", "max_model_len": "long"}, 3, {"id": 4}]})
async def test_no_answer_however_odd_makes_probing_fail(path: str, status: int, value: Any) -> None:
    profile = await probe(ScriptedUpstream(scripted.working_routes() | {path: fixed(status, value)}))
    assert profile.reachable


async def test_tokens_are_counted_by_the_upstream_or_not_at_all() -> None:
    assert await count_tokens(upstream(), MODEL, "five!") == 5
    assert await count_tokens(upstream(tokenize=None), MODEL, "five!") is None
    assert await count_tokens(upstream(tokenize=scripted.refused_connection), MODEL, "five!") is None


async def test_text_is_counted_without_the_special_tokens_of_a_prompt() -> None:
    asked = upstream()
    await count_tokens(asked, MODEL, "x")
    assert asked.asked == [("/tokenize", {"model": MODEL, "prompt": "x", "add_special_tokens": False})]


async def test_messages_are_tokenized_ready_for_the_answer() -> None:
    asked = upstream()
    assert await tokenize(asked, MODEL, [{"role": "user", "content": "a"}]) == tuple(map(ord, "<user>a"))
    assert asked.asked[0][1]["add_generation_prompt"] is True


async def test_labels_are_scored_in_the_order_asked_for_with_one_token() -> None:
    asked = upstream()
    scores = await score_labels(asked, MODEL, (1, 2, 3), (7, 5))
    assert scores is not None
    assert scores.logprobs == (SCORED_LOGPROB, SCORED_LOGPROB - 1)
    assert scores.cached_tokens == 0
    payload = asked.asked[0][1]
    assert (payload["prompt"], payload["max_tokens"], payload["logprob_token_ids"]) == ([1, 2, 3], 1, [7, 5])


async def test_scores_that_are_missing_or_refused_are_none() -> None:
    assert await score_labels(upstream(v1_completions=scripted.complete_as_older_vllm), MODEL, "p", (1,)) is None
    assert await score_labels(upstream(v1_completions=fixed(400, {})), MODEL, "p", (1,)) is None
    assert await score_labels(upstream(v1_completions=scripted.refused_connection), MODEL, "p", (1,)) is None
