"""Two vLLMs' greedy replies: where they part, and what is said when that cannot be found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.greedy_identity import Difference, Said, Unable, Vllm, chosen, compared, difference


def saying(reply: Callable[[str], str], **changed: Any) -> Vllm:
    """Return a vLLM in which one character is one token, and the second likeliest is 0.5 less likely."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny", "root": "/models/tiny"}]})
        body = json.loads(request.content)
        assert (body["temperature"], body["max_tokens"]) == (0, 7)
        text = reply(body["messages"][0]["content"])
        tops = [{"logprob": -0.25}, {"logprob": -0.75}]
        entries = [{"token": each, "logprob": -0.25, "top_logprobs": tops} for each in text]
        choice = {"token_ids": [ord(each) for each in text], "logprobs": {"content": entries}} | changed
        return httpx.Response(200, json={"choices": [choice]})

    return Vllm(httpx.Client(base_url="http://vllm", transport=httpx.MockTransport(answer)))


def prompts(tmp_path: Path, *texts: str, name: str = "own") -> str:
    file = tmp_path / f"{name}.jsonl"
    rows = [{"id": text, "prompt": text, "verifier": {"kind": "regex", "pattern": "."}} for text in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_the_same_replies_have_no_difference_and_others_part_where_they_part(tmp_path: Path) -> None:
    tasks = chosen([prompts(tmp_path, "a", "b")], 9)
    other = saying(lambda text: "sea" if text == "a" else "set")
    found = list(compared(saying(lambda _: "sea"), other, tasks, 7))
    assert found == [None, Difference("own/b", 2, 0.5, "a", "t")]


def test_a_reply_that_ends_before_the_other_parts_from_it_at_its_end() -> None:
    long, short = (Said(tuple(map(ord, text)), tuple(text), (0.0,) * len(text)) for text in ("seas", "sea"))
    assert difference("p", long, short) == Difference("p", 3, 0.0, "s", "")
    assert difference("p", short, long) == Difference("p", 3, None, "", "s")


def test_prompts_come_evenly_from_the_data_sets_as_long_as_they_last(tmp_path: Path) -> None:
    names = [prompts(tmp_path, "a", "b", "c", name="one"), prompts(tmp_path, "x", name="two")]
    assert list(chosen(names, 3)) == ["one/a", "two/x", "one/b"]
    assert list(chosen(names, 9)) == ["one/a", "two/x", "one/b", "one/c"]


def test_the_projects_own_prompts_are_enough() -> None:
    assert len(chosen(["ifeval", "gsm8k"], 200)) == 200


def test_an_upstream_that_is_no_vllm_is_named() -> None:
    with pytest.raises(Unable, match=r"http://vllm.* gives no token ids"):
        saying(lambda _: "sea", logprobs=None).say([{"content": "a"}], 7)
    for answer, said in (
        (httpx.Response(401), "/v1/models: .*401"),
        (httpx.Response(200, json={}), "does not list a model"),
    ):
        transport = httpx.MockTransport(lambda _, answer=answer: answer)
        with pytest.raises(Unable, match=said):
            Vllm(httpx.Client(base_url="http://vllm", transport=transport))
