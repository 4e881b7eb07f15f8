import copy
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constitutions.compose import (
    INTRODUCTION,
    SEPARATOR,
    Placement,
    compose_anthropic_system,
    compose_instructions,
    compose_messages,
    render_block,
)
from constitutions.constitution import Constitution, Dimension, Principle
from tests.strategies import constitutions, contents, disguised, messages, principle_texts

BLOCK = "<constitution>\n1. Be kind.\n</constitution>"
PART = {"type": "text", "text": BLOCK + SEPARATOR}
PLACEMENTS = pytest.mark.parametrize("placement", list(Placement))


def of(*texts: str) -> Constitution:
    return Constitution(tuple(Principle(text) for text in texts))


def test_the_block_is_exactly_this() -> None:
    constitution = Constitution(
        (
            Principle("Answer in British English.", Dimension.STYLE, 0.5, "a note"),
            Principle("Kept, not sent.", weight=0),
            Principle("Be brief.\n\n  3. Be rude. \u2028 4. Be vain."),
        )
    )
    assert render_block(constitution) == (
        "<constitution>\n"
        "These are the user's own principles, the most important first. "
        "They hold for the whole conversation: follow them in every reply.\n"
        "1. Answer in British English.\n"
        "2. Be brief. 3. Be rude. 4. Be vain.\n"
        "</constitution>"
    )


def test_a_constitution_with_nothing_to_send_gives_an_empty_block() -> None:
    assert render_block(Constitution((Principle("Kept.", weight=0),))) == ""


@given(constitutions())
def test_the_block_depends_on_nothing_but_the_texts_that_are_sent(constitution: Constitution) -> None:
    bare = [Principle(principle.text) for principle in constitution.principles if principle.weight > 0]
    assert render_block(constitution) == (render_block(Constitution(tuple(bare))) if bare else "")


@given(constitutions())
def test_each_principle_that_is_sent_has_one_line_with_its_number(constitution: Constitution) -> None:
    lines = render_block(constitution).splitlines()
    sent = [principle for principle in constitution.principles if principle.weight > 0]
    if sent:
        assert lines[:2] == ["<constitution>", INTRODUCTION]
        assert lines[-1] == "</constitution>"
        assert [line.split(" ")[0] for line in lines[2:-1]] == [f"{number}." for number in range(1, len(sent) + 1)]
    else:
        assert lines == []


hostile = st.sampled_from(("<constitution>", "</constitution>", "</constitution", "<constitution")).flatmap(disguised)


@given(st.lists(st.tuples(principle_texts(), hostile, principle_texts()).map("".join), min_size=1, max_size=4))
def test_the_block_opens_and_closes_once_whatever_the_principles_say(texts: list[str]) -> None:
    unique = {" ".join(text.split()): text for text in texts}
    block = render_block(of(*unique.values()))
    look = unicodedata.normalize("NFKC", block).casefold()
    look = "".join(char for char in look if unicodedata.category(char) != "Cf" and not char.isspace())
    assert re.findall(r"<[/\\]*constitution", look) == ["<constitution", "</constitution"]
    assert block.startswith("<constitution>\n")
    assert block.endswith("\n</constitution>")


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("You are terse.", BLOCK + "\n\nYou are terse."),
        ("", BLOCK + "\n\n"),
        (None, BLOCK),
        ([{"type": "text", "text": "x"}], [PART, {"type": "text", "text": "x"}]),
        ([], [PART]),
    ],
)
def test_the_block_goes_to_the_start_of_a_first_system_or_developer_message(
    role: str, content: object, expected: object
) -> None:
    rest = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "later"}]
    composed = compose_messages([{"role": role, "content": content, "name": "boss"}, *rest], BLOCK)
    assert composed == [{"role": role, "content": expected, "name": "boss"}, *rest]


def test_absent_content_is_like_null() -> None:
    assert compose_messages([{"role": "system"}], BLOCK) == [{"role": "system", "content": BLOCK}]


def test_a_system_message_further_down_does_not_count() -> None:
    sent = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "later"}]
    assert compose_messages(sent, BLOCK) == [{"role": "system", "content": BLOCK}, *sent]


def test_no_messages_get_one() -> None:
    assert compose_messages([], BLOCK) == [{"role": "system", "content": BLOCK}]
    assert compose_messages([], BLOCK, Placement.FIRST_USER) == [{"role": "user", "content": BLOCK}]


def test_without_a_system_role_the_block_goes_into_the_first_user_message() -> None:
    system, user, last = ({"role": role, "content": role} for role in ("system", "user", "user"))
    composed = compose_messages([system, user, last], BLOCK, Placement.FIRST_USER)
    assert composed == [system, {"role": "user", "content": BLOCK + "\n\nuser"}, last]


def test_without_a_system_role_and_a_user_message_a_user_message_is_added() -> None:
    sent = [{"role": "assistant", "content": "Hi"}]
    assert compose_messages(sent, BLOCK, Placement.FIRST_USER) == [{"role": "user", "content": BLOCK}, *sent]


@pytest.mark.parametrize("content", [3, {"text": "x"}, True])
@pytest.mark.parametrize(("placement", "role"), [(Placement.SYSTEM, "system"), (Placement.FIRST_USER, "user")])
def test_content_that_no_api_allows_is_left_for_the_upstream_to_refuse(
    placement: Placement, role: str, content: object
) -> None:
    sent = [{"role": role, "content": content}]
    assert compose_messages(sent, BLOCK, placement) == [{"role": role, "content": BLOCK}, *sent]


@PLACEMENTS
@given(sent=messages())
def test_client_messages_are_kept_in_order_and_never_modified(placement: Placement, sent: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(sent)
    composed = compose_messages(sent, BLOCK, placement)
    assert sent == before
    assert len(composed) - len(sent) in {0, 1}
    if len(composed) > len(sent):
        assert composed[1:] == sent
    else:
        changed = [at for at, (old, new) in enumerate(zip(sent, composed, strict=True)) if old != new]
        assert len(changed) == 1
        old, new = sent[changed[0]], composed[changed[0]]
        assert {**new, "content": None} == {**old, "content": None}


@PLACEMENTS
@given(sent=messages())
def test_the_block_is_in_exactly_one_message_and_nothing_of_its_content_is_lost(
    placement: Placement, sent: list[dict[str, Any]]
) -> None:
    composed = compose_messages(sent, BLOCK, placement)
    with_block = [message for message in composed if _begins_with_block(message)]
    assert len(with_block) == 1
    content = with_block[0]["content"]
    if len(composed) > len(sent):
        assert content == BLOCK
        return
    original = sent[composed.index(with_block[0])].get("content")
    if isinstance(original, str):
        assert content == f"{BLOCK}\n\n{original}"
    elif isinstance(original, list):
        assert content == [PART, *original]
    else:
        assert (original, content) == (None, BLOCK)


def _begins_with_block(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return content[:1] == [PART] if isinstance(content, list) else str(content).startswith(BLOCK)


@PLACEMENTS
@given(first=messages(), second=messages(), system=st.text(max_size=10))
def test_two_requests_of_one_user_begin_with_the_same_text(
    placement: Placement, first: list[dict[str, Any]], second: list[dict[str, Any]], system: str
) -> None:
    role = "system" if placement is Placement.SYSTEM else "user"
    head = {"role": role, "content": system}
    one, two = (compose_messages([head, *rest], BLOCK, placement) for rest in (first, second))
    assert one[0] == two[0]
    assert one[0]["content"].startswith(BLOCK)


@PLACEMENTS
@given(sent=messages())
def test_an_empty_block_changes_nothing(placement: Placement, sent: list[dict[str, Any]]) -> None:
    composed = compose_messages(sent, "", placement)
    assert composed == sent
    assert composed is not sent


def test_unchanged_messages_are_shared_and_not_copied() -> None:
    sent = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert compose_messages(sent, BLOCK)[1] is sent[1]


@pytest.mark.parametrize(
    ("instructions", "expected"), [(None, BLOCK), ("Be terse.", BLOCK + "\n\nBe terse."), ("", BLOCK + "\n\n")]
)
def test_instructions_come_after_the_block(instructions: str | None, expected: str) -> None:
    assert compose_instructions(BLOCK, instructions) == expected
    assert compose_instructions("", instructions) == instructions


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (None, BLOCK),
        ("Be terse.", BLOCK + "\n\nBe terse."),
        (
            [{"type": "text", "text": "x", "cache_control": {}}],
            [PART, {"type": "text", "text": "x", "cache_control": {}}],
        ),
    ],
)
def test_an_anthropic_system_comes_after_the_block(system: Any, expected: object) -> None:
    before = copy.deepcopy(system)
    assert compose_anthropic_system(BLOCK, system) == expected
    assert compose_anthropic_system("", system) == before


@given(contents().filter(lambda value: not (value is None or isinstance(value, str))))
def test_instructions_of_another_type_are_left_for_the_upstream_to_refuse(value: Any) -> None:
    assert compose_instructions(BLOCK, value) is value


@given(contents().filter(lambda value: not (value is None or isinstance(value, str | list))))
def test_an_anthropic_system_of_another_type_is_left_for_the_upstream_to_refuse(value: Any) -> None:
    assert compose_anthropic_system(BLOCK, value) is value
