"""A sampled answer is, field by field, what vLLM would have answered: only `preamble` tells it from one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Vllm
from tests.e2e.comparing import assert_same_answer
from tests.e2e.running import User
from tests.e2e.test_parity import CHAT, CHATS, STREAM_OPTIONS, Both

pytestmark = pytest.mark.live

# The first candidate is what would have come without us; with this policy it is good enough.
FIRST = {"preamble": {"mode": "adaptive", "n_max": 2, "threshold": 0, "checkpoints": []}}
WARM = {"temperature": 0.01, "seed": 5}

SAMPLED = {case for case in CHATS if "n" not in CHATS[case]}
# The model does not end these calls in time. A cut call is text to vLLM, unless it streams; we always stream.
CUT_CALLS = {"tools, required", "tools, named"}


@pytest.fixture
def both(vllm: Vllm, user: User) -> Iterator[Both]:
    """Return what sends a request both ways."""
    headers = {"authorization": f"Bearer {vllm.api_key}"}
    with httpx.Client(base_url=vllm.base_url, headers=headers, timeout=120) as direct:
        yield Both(direct, user.http, vllm.model)


def without_report(answer: Any) -> Any:
    """Return the answer without `preamble`, after checking that it is there."""
    assert answer.pop("preamble")["candidates"]["drawn"] >= 1
    return answer


@pytest.mark.parametrize("case", sorted(SAMPLED - CUT_CALLS))
def test_a_sampled_chat_is_answered_as_by_vllm_itself(both: Both, case: str) -> None:
    expected, answer = both.post("/v1/chat/completions", CHATS[case] | WARM | FIRST)
    assert_same_answer(expected, without_report(answer))


@pytest.mark.parametrize("case", sorted(SAMPLED))
def test_a_sampled_chat_streams_as_from_vllm_itself(both: Both, case: str) -> None:
    expected, streamed = both.stream("/v1/chat/completions", CHATS[case] | WARM | FIRST)
    assert streamed[-1] == expected[-1] == "[DONE]"
    assert_same_answer(expected[:-1], [without_report(streamed[0]), *streamed[1:-1]])


@pytest.mark.parametrize("case", STREAM_OPTIONS)
def test_stream_options_act_as_with_vllm_itself(both: Both, case: str) -> None:
    expected, streamed = both.stream("/v1/chat/completions", CHAT | STREAM_OPTIONS[case] | WARM | FIRST)
    assert_same_answer(expected[:-1], [without_report(streamed[0]), *streamed[1:-1]])
