"""The self-evaluation question in the words of the upstream's chat template."""

from __future__ import annotations

from typing import Any

import pytest

from adaptive.scoring import Labels, ScoringFailed
from adaptive.self_evaluation import SelfEvaluationQuestion
from server.self_evaluation_config import LITERAL, QuestionIds, SelfEvaluationConfig
from server.self_evaluation_tokens import SelfEvaluationTokens
from tests.server.sampling_upstream import NO, YES, SamplingUpstream
from tests.server.scripted_upstream import ScriptedUpstream, fixed, refused_connection


def template(payload: Any) -> tuple[int, Any]:
    return SamplingUpstream([])._answer("/tokenize", payload)


def forgetting(payload: Any) -> tuple[int, Any]:
    """A template that leaves out what the assistant said in earlier turns."""
    if len(payload.get("messages", ())) == 3:
        payload = payload | {"messages": payload["messages"][2:]}
    return template(payload)


def many_tokens(payload: Any) -> tuple[int, Any]:
    return (200, {"tokens": [1, 2]}) if payload.get("prompt") == "No" else template(payload)


async def test_the_suffix_ends_the_turn_asks_and_begins_the_answer() -> None:
    found = await SelfEvaluationTokens(ScriptedUpstream({"/tokenize": template}), upstream_now=lambda: 1).of("m")
    text = "".join(map(chr, found.suffix))
    assert text == '\3\2user\nWould you do better if you started over? ("Yes." or "No.")\3\2assistant\n'
    assert (found.labels.win_or_tie, found.labels.loss) == ((NO,), (YES,))
    assert found.end_id == ord("\3")


IDS = QuestionIds((ord("\3"), 9, 9), Labels((NO, 7), (YES,)))


def asked_by(config: SelfEvaluationConfig, answer: Any = template) -> SelfEvaluationTokens:
    upstream = ScriptedUpstream({"/tokenize": answer})
    return SelfEvaluationTokens(upstream, upstream_now=lambda: 1, config_of=lambda _: config)


async def test_a_question_in_other_words_with_several_spellings_is_tokenized_like_the_literal_one() -> None:
    question = SelfEvaluationQuestion("Better?", ("No", "n"), ("Yes",))
    found = await asked_by(SelfEvaluationConfig(question)).of("m")
    assert "".join(map(chr, found.suffix)) == "\3\2user\nBetter?\3\2assistant\n"
    assert found.labels == Labels((NO, ord("n")), (YES,))


async def test_labels_that_are_the_same_token_cannot_be_told_apart() -> None:
    def blurred(payload: Any) -> tuple[int, Any]:
        return (200, {"tokens": [7]}) if payload.get("prompt") else template(payload)

    with pytest.raises(ScoringFailed, match="the same token"):
        await asked_by(LITERAL, blurred).of("m")


async def test_token_ids_are_taken_as_they_are_and_the_turns_end_is_the_templates() -> None:
    found = await asked_by(SelfEvaluationConfig(IDS)).of("m")
    assert (found.suffix, found.labels) == (IDS.suffix, IDS.labels)
    assert (found.end_id, found.ends_the_turn) == (ord("\3"), True)
    other = await asked_by(SelfEvaluationConfig(QuestionIds((9, 9), IDS.labels))).of("m")
    assert (other.end_id, other.ends_the_turn) == (ord("\3"), False)


async def test_where_the_template_cannot_be_asked_the_suffix_says_what_ends_a_turn() -> None:
    found = await asked_by(SelfEvaluationConfig(IDS), fixed(404, None)).of("m")
    assert (found.end_id, found.ends_the_turn) == (ord("\3"), True)


async def test_it_is_asked_once_per_model_and_anew_when_the_upstream_may_be_another() -> None:
    upstream = ScriptedUpstream({"/tokenize": template})
    profile = [object()]
    tokens = SelfEvaluationTokens(upstream, upstream_now=lambda: profile[0])
    for model, asked in (("m", 4), ("m", 4), (None, 8), ("m", 8)):
        await tokens.of(model)
        assert len(upstream.asked) == asked
    assert "model" not in upstream.asked[-1][1]
    profile[0] = object()
    await tokens.of("m")
    assert len(upstream.asked) == 12


@pytest.mark.parametrize("answer", [forgetting, many_tokens, fixed(404, None), fixed(200, []), refused_connection])
async def test_what_cannot_be_asked_is_a_failed_score_and_is_tried_again(answer: Any) -> None:
    upstream = ScriptedUpstream({"/tokenize": answer})
    tokens = SelfEvaluationTokens(upstream, upstream_now=lambda: 1)
    for _ in range(2):
        with pytest.raises(ScoringFailed):
            await tokens.of("m")
    upstream.routes["/tokenize"] = template
    assert (await tokens.of("m")).suffix
