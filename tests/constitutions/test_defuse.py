import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constitutions.defuse import MarkupKind, defuse, find_markup
from tests.strategies import disguised, principle_texts

CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "[inst]",
    "[/inst]",
    "<<sys>>",
    "<</sys>>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<eos>",
    "</think>",
    "<tool_call>",
    "<|turn>",
    "<turn|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[system_prompt]",
)
DELIMITERS = ("<constitution>", "</constitution>", "</constitution", "<constitution")


def appearance(text: str) -> str:
    """What a careless reader of the text sees, found independently of the code under test."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if unicodedata.category(char) != "Cf")


@pytest.mark.parametrize(
    "text",
    [
        "x < y",
        "if x <y and y> z",
        "Use <b> and <em> sparingly, never <h1>.",
        "See [1], [x] and [INSTALL].",
        "f <| x |> g",
        "a | b <- c",
        "Honour the constitution of Poland.",
        "<html></html>",
        "List<String>",
        "a << b >> c",
        "naïve café, \u2039quoted\u203a, 《书》",
        "</script>",
    ],
)
def test_innocent_text_stays_as_it_is(text: str) -> None:
    assert defuse(text) == text
    assert find_markup(text) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("end </constitution> now", "end (/constitution) now"),
        ("<constitution>", "(constitution)"),
        ('<constitution class="x">', '(constitution class="x">'),
        ("< / CONSTITUTION >", "( / CONSTITUTION )"),
        ("<\\constitution>", "(\\constitution)"),
        ("<//constitution>", "(//constitution)"),
        ("</con\u200bstitution>", "(/con\u200bstitution)"),
        ("\uff1c\uff0fconstitution\uff1e", "(\uff0fconstitution)"),
        ("\u226e/constitution>", "(/constitution)"),
        ("</con\ufb06itution>", "(/con\ufb06itution)"),
        ("</\u0441\u043enstitution>", "(/\u0441\u043enstitution)"),
        ("</cons\ufe0ftitu\u0301tion>", "(/cons\ufe0ftitu\u0301tion)"),
        ("\u2039/constitution\u203a", "(/constitution)"),
        ("say <|im_end|>", "say (|im_end|)"),
        ("<|eot_id|><|x|>", "(|eot_id|)(|x|)"),
        ("[INST] a [/INST]", "(INST) a (/INST)"),
        ("<<SYS>> a <</SYS>>", "((SYS)) a ((/SYS))"),
        ("<s>a</s>", "(s)a(/s)"),
        ("</think>", "(/think)"),
        ("<start_of_turn>user", "(start_of_turn)user"),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", "(\uff5cend\u2581of\u2581sentence\uff5c)"),
        ("<<s>s>", "<(s)s>"),
        ("</constitution|>", "(/constitution|)"),
        ("<|</constitution|>|>", "<|(/constitution|)|>"),
        ("<|<s>|>", "(|(s)|)"),
    ],
)
def test_markup_loses_its_brackets_and_nothing_else_changes(text: str, expected: str) -> None:
    assert defuse(text) == expected


@given(st.sampled_from(DELIMITERS).flatmap(disguised), principle_texts(), principle_texts())
def test_no_disguise_gets_a_delimiter_through(delimiter: str, before: str, after: str) -> None:
    look = re.sub(r"\s", "", appearance(defuse(before + delimiter + after)))
    assert "<constitution" not in look
    assert "</constitution" not in look


@given(st.sampled_from(CONTROL_TOKENS).flatmap(disguised), principle_texts(), principle_texts())
def test_no_disguise_gets_a_control_token_through(token: str, before: str, after: str) -> None:
    look = appearance(defuse(before + token + after))
    assert not [known for known in CONTROL_TOKENS if appearance(known) in look]


@given(st.text(alphabet="<>[]|/\\ scINTconstitution\u200b\uff1c", max_size=60) | principle_texts())
def test_defusing_only_makes_brackets_round_and_is_done_after_one_time(text: str) -> None:
    defused = defuse(text)
    assert len(defused) == len(text)
    assert {after for before, after in zip(text, defused, strict=True) if before != after} <= {"(", ")"}
    assert defuse(defused) == defused


def test_markup_is_found_with_its_kind_and_place() -> None:
    delimiter, token = find_markup("a <s> b <\u200bconstitution> c")
    assert (delimiter.kind, delimiter.start, delimiter.end) == (MarkupKind.DELIMITER, 8, 23)
    assert (token.kind, token.start, token.end) == (MarkupKind.CONTROL_TOKEN, 2, 5)
