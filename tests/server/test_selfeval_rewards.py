"""Where rewards are from: verifiers, reward models, judges, people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from adaptive.engine import EngineBusy, EngineFailed
from adaptive.evaluation.verifiers import build
from adaptive.splits import Split
from server.reward import RewardUpstream, reward_upstream
from server.selfeval_prompts import NamedConstitution, Prompt
from server.selfeval_rewards import (
    JudgeReward,
    LocalReward,
    PreferenceReward,
    UpstreamReward,
    VerifierReward,
    expected_mark,
    with_a_floor,
)
from server.settings import Settings
from tests.server.scripted_reward import ScriptedReward

RULES = NamedConstitution("brief", "<constitution>Be brief.</constitution>")
PROMPT = Prompt("f/1", "f", Split.TRAIN, ({"role": "user", "content": "2+2?"},), constitution=RULES)


def upstream_of(scripted: ScriptedReward, **settings: Any) -> RewardUpstream:
    made = reward_upstream(Settings.model_validate({"reward_upstream": scripted.url} | settings))
    assert made is not None
    return made


async def test_a_verifier_gives_its_reward_and_a_prompt_without_one_fails() -> None:
    source = VerifierReward()
    verified = replace(PROMPT, verify=build({"kind": "number", "answer": 4}))
    assert await source.rewards(verified, ["4", "it is 4", "5"]) == (1.0, 1.0, 0.0)
    with pytest.raises(EngineFailed, match="no verifier"):
        await source.rewards(PROMPT, ["4"])


async def test_people_preferred_the_first() -> None:
    assert await PreferenceReward().rewards(PROMPT, ["good", "bad"]) == (1.0, 0.0)


async def test_a_served_reward_model_judges_by_the_constitution_too() -> None:
    async with ScriptedReward(reward=lambda text: float(text.count("good"))).serving() as scripted:
        source = UpstreamReward(upstream_of(scripted), url=scripted.url, model=None)
        assert await source.rewards(PROMPT, ["good good", "", "bad"]) == (2.0, -1.0, 0.0)
        await source.aclose()
    _, body = scripted.judged()[0]
    assert body["messages"][0] == {"role": "system", "content": RULES.block}
    assert body["messages"][-1]["role"] == "assistant"


async def test_trouble_with_a_reward_model_is_a_failure_that_may_be_tried_again() -> None:
    async with ScriptedReward(limit=10).serving() as scripted:
        source = UpstreamReward(upstream_of(scripted), url=scripted.url, model=None)
        with pytest.raises(EngineFailed, match="maximum context length"):
            await source.rewards(PROMPT, ["good"])
        await source.aclose()


def test_minus_infinity_loses_to_every_other_and_is_a_number() -> None:
    assert with_a_floor([1.0, -math.inf, -3.0]) == (1.0, -4.0, -3.0)
    assert with_a_floor([-math.inf, -math.inf]) == (0.0, 0.0)


async def test_a_reward_model_in_this_process_sees_whole_conversations_that_say_something() -> None:
    seen = []

    def judge(conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
        seen.extend([*map(list, conversations)])
        return [float(len(each[-1]["content"])) for each in conversations]

    source = LocalReward(judge, source="here")
    assert await source.rewards(PROMPT, ["four", " ", "4"]) == (4.0, 0.0, 1.0)
    assert [[message["role"] for message in each] for each in seen] == [["system", "user", "assistant"]] * 2
    assert await source.rewards(PROMPT, ["", ""]) == (0.0, 0.0)


async def test_a_reward_model_in_this_process_that_fails_fails_the_prompt_only() -> None:
    def judge(conversations: object) -> list[float]:
        raise ValueError("9 tokens are more than its 8")

    with pytest.raises(EngineFailed, match="9 tokens are more"):
        await LocalReward(judge, source="here").rewards(PROMPT, ["four"])


@dataclass
class ScriptedJudge:
    """Answers with what a test wrote down by the reply that is judged."""

    answers: dict[str, Any]
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False

    async def request_json(self, method: str, path: str, payload: Any = None) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/v1/chat/completions")
        self.asked.append(payload)
        said = payload["messages"][0]["content"]
        reply = said.partition("<reply>\n")[2].partition("\n</reply>")[0]
        return self.status, self.answers.get(reply, {"error": {"message": "busy"}})

    async def aclose(self) -> None:
        self.closed = True


def says(text: str, *positions: dict[str, float]) -> dict[str, Any]:
    content = [
        {
            "token": max(position, key=lambda token: position[token]),
            "logprob": math.log(max(position.values())),
            "top_logprobs": [{"token": token, "logprob": math.log(share)} for token, share in position.items()],
        }
        for position in positions
    ]
    logprobs = {"content": content} if positions else None
    return {"choices": [{"message": {"content": text}, "logprobs": logprobs}]}


def judge(scripted: ScriptedJudge) -> JudgeReward:
    return JudgeReward(scripted, url="http://judge", model="big", max_tokens=16)


async def test_a_judge_gives_the_expected_mark_from_0_to_1() -> None:
    scripted = ScriptedJudge({"four": says("7", {"7": 0.5, "10": 0.5}), "five": says("7", {"7": 0.9, "4": 0.1})})
    source = judge(scripted)
    assert await source.rewards(PROMPT, ["four", "five", " "]) == pytest.approx((7.5 / 9, 5.7 / 9, 0.0))
    assert len(scripted.asked) == 2  # what says nothing needs no judge
    request = scripted.asked[0]["messages"][0]["content"]
    assert f"[system]\n{RULES.block}\n\n[user]\n2+2?" in request
    assert scripted.asked[0]["temperature"] == 0
    await source.aclose()
    assert scripted.closed


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("8", 8.0),
        ("Mark: 10", 10.0),
        ("I give it 3/10.", 3.0),
        ("6 out of 10", 6.0),
        ("Of 3 parts one is wrong: 5", 5.0),
        ("10", 10.0),
    ],
)
async def test_without_probabilities_the_mark_is_the_last_in_the_text(text: str, mark: float) -> None:
    source = judge(ScriptedJudge({"four": says(text)}))
    assert await source.rewards(PROMPT, ["four"]) == pytest.approx(((mark - 1) / 9,))


@pytest.mark.parametrize("answer", [says("No comment."), says("0"), says("11"), {}, {"choices": []}, says("7.5")])
async def test_a_judge_without_a_mark_is_a_failure(answer: dict[str, Any]) -> None:
    with pytest.raises(EngineFailed, match="judge"):
        await judge(ScriptedJudge({"four": answer})).rewards(PROMPT, ["four"])


async def test_a_busy_judge_is_worth_waiting_for() -> None:
    with pytest.raises(EngineBusy, match="busy"):
        await judge(ScriptedJudge({}, status=503)).rewards(PROMPT, ["four"])


@pytest.mark.parametrize(
    ("positions", "said", "mark"),
    [
        ([{"7": 0.6, " 7": 0.2, "8": 0.2}], "7", 7.2),
        ([{"The": 0.6, "7": 0.4}], "The", None),
        ([], "", None),
        ([{"1": 0.8, "9": 0.2}, {"0": 0.75, "<end>": 0.25}], "1", 0.2 * 9 + 0.8 * (0.75 * 10 + 0.25)),
        ([{"1": 1.0}], "1", 1.0),
        ([{"9": 0.6, "1": 0.4}, {"<end>": 1.0}], "9", 9.0),  # a 1 or a 10, nobody knows
        ([{"9": 0.6, "1": 0.2, "10": 0.2}], "9", 7.6),
    ],
)
def test_a_mark_is_expected_of_the_first_token_and_a_ten_may_be_two(
    positions: list[dict[str, float]], said: str, mark: float | None
) -> None:
    found = expected_mark(positions, said)
    assert found == (None if mark is None else pytest.approx(mark))
