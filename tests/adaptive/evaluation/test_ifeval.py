"""Each kind of IFEval's instructions, with replies that follow it and replies that do not."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from adaptive.evaluation.ifeval import INSTRUCTIONS, InstructionError, follows, read_instruction

ENGLISH = "The quick brown fox jumps over the lazy dog and goes home to sleep"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und geht nach Hause"


class Case(NamedTuple):
    kind: str
    arguments: dict[str, Any]
    accepted: tuple[str, ...]
    rejected: tuple[str, ...]


AT_LEAST, LESS_THAN = "at least", "less than"
CASES = (
    Case(
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        ("It is VERY good, USA.", "A WELL-KNOWN THING", "ONE and TWO and THREE"),
        ("It is VERY good.", "A-b is One word, not two"),
    ),
    Case(
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS_THAN},
        ("It is VERY good.", "nothing here", "A WeLL-KNOWN thing"),
        ("It is VERY GOOD.",),
    ),
    Case(
        "change_case:english_capital",
        {},
        (f"{ENGLISH.upper()}.", "12 O'CLOCK IS THE TIME TO EAT"),
        (ENGLISH, GERMAN.upper()),
    ),
    Case("change_case:english_lowercase", {}, (ENGLISH.lower(),), (ENGLISH, GERMAN.lower(), ENGLISH.upper())),
    Case(
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ("Write a poem. Roses are red", "\n write A poem.\n\nRoses"),
        ("Sure! Write a poem. Roses", "Write the poem."),
    ),
    Case(
        "combination:two_responses",
        {},
        ("one ****** two", "******one******two******"),
        ("one", "one ****** one", "one ****** two ****** three", "one ****** ****** two"),
    ),
    Case(
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ("[name] of [place]", "[a][b][c]"),
        ("[name] only", "[name of\nplace] [x]"),
    ),
    Case(
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ("Bye.\nP.S. more", "Bye. p. s. more"),
        ("Bye.\nPS more", "P.P.S more"),
    ),
    Case(
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ("Bye.\nP.P.S more", "p. p. s: more"),
        ("Bye.\nP.S. more",),
    ),
    Case(
        "detectable_format:constrained_response",
        {},
        ("My answer is yes.", "I think: My answer is maybe. Yes"),
        ("yes", "my answer is no.", "My answer is no"),
    ),
    Case(
        "detectable_format:json_format",
        {},
        ('{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n[]\n```", "7"),
        ("{a: 1}", 'Here: {"a": 1}', "[" * 100_000),
    ),
    Case(
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ("SECTION 1\na\nSECTION 2\nb", "x SECTION1 y SECTION 2 SECTION 3"),
        ("SECTION 1\na", "Section 1\na\nSection 2\nb", "SECTION one SECTION two"),
    ),
    Case(
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ("* a\n* b", "text\n - a\n  * b", "- a\n---"),
        ("* a", "* a\n* b\n* c", "**bold**\n**more**", "1. a\n2. b"),
    ),
    Case(
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ("*a* and *b*", "**a** and *b*", "**a** **b** **c**"),
        ("*a*", "* a\n* b", "** ** and **a**"),
    ),
    Case("detectable_format:title", {}, ("<<A Poem>>\nx", "x <<y>> z"), ("<A Poem>", "<<>>", "<< \n >>", "<<  >>")),
    Case("keywords:existence", {"keywords": ["sea", "sand"]}, ("Sea and sand.", "seaside sandals"), ("the sea", "")),
    Case(
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "a.b"]},
        ("rocky roads", "axb"),
        ("Rock on", "the rock.", "x a.b x"),
    ),
    Case(
        "keywords:frequency",
        {"keyword": "dog", "frequency": 2, "relation": AT_LEAST},
        ("Dog dog", "dogs and dogma"),
        ("dog",),
    ),
    Case(
        "keywords:frequency",
        {"keyword": "dog", "frequency": 2, "relation": LESS_THAN},
        ("a dog", "cat"),
        ("dog, dogs",),
    ),
    Case(
        "keywords:letter_frequency",
        {"letter": "T", "let_frequency": 3, "let_relation": AT_LEAST},
        ("tattoo", "ToT t"),
        ("tat",),
    ),
    Case(
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": LESS_THAN},
        ("oh!", "oh"),
        ("oh!!",),
    ),
    Case("language:response_language", {"language": "de"}, (GERMAN, "12345 67890"), (ENGLISH,)),
    Case(
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Elm"},
        ("Oaks are old.\n\nElm trees", "Oaks.\n\n\"Elm's are", "Oaks.\n\nelm, they say"),
        ("Elm\n\nOak", "Oak\n\nElms", "Oak\n\nx\n\nElm", "Elm", "Oak\n\n\n\nElm"),
    ),
    Case(
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ("one\n***\ntwo", "***\none\n***\ntwo\n***"),
        ("one", "one\n***\n***\ntwo", "one *** two *** three", "one\n\ntwo"),
    ),
    Case(
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": AT_LEAST},
        ("One. Two! Three?", "It is 3.5 km. Yes. Really", 'He said "Go." Then he went. Far.'),
        ("One. Two.", "Dr. Who met Mr. Smith.", "a\nb\nc"),
    ),
    Case(
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LESS_THAN},
        ("Only one, e.g. this.", "no end"),
        ("One. Two.",),
    ),
    Case(
        "length_constraints:number_words",
        {"num_words": 3, "relation": AT_LEAST},
        ("one two three", "well-known word"),
        ("one two", "- ... !"),
    ),
    Case("length_constraints:number_words", {"num_words": 3, "relation": LESS_THAN}, ("one two",), ("it's one",)),
    Case("punctuation:no_comma", {}, ("no such thing; none",), ("one, two",)),
    Case(
        "startend:end_checker",
        {"end_phrase": "Any more?"},
        ("Bye. Any more?", 'Bye. "any MORE?"  '),
        ("Any more? Bye.", "Any more"),
    ),
    Case("startend:quotation", {}, ('"all of it"', ' "x" '), ("all", '"', '"begun', "'x'")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_a_reply_that_follows_is_accepted_and_one_that_does_not_is_not(case: Case) -> None:
    instruction = read_instruction({"id": case.kind, **case.arguments})
    assert [reply for reply in case.accepted if not follows(reply, instruction)] == []
    assert [reply for reply in case.rejected if follows(reply, instruction)] == []


def test_every_kind_has_its_cases() -> None:
    assert {case.kind for case in CASES} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


@pytest.mark.parametrize("kind", ["punctuation:no_comma", "keywords:forbidden_words"])
def test_an_empty_reply_follows_nothing(kind: str) -> None:
    arguments = {"forbidden_words": ["x"]} if "forbidden" in kind else {}
    assert not follows(" \n", read_instruction({"id": kind, **arguments}))


def test_the_language_of_a_text_is_the_same_every_time() -> None:
    doubtful = "ok no si da tak"
    instruction = read_instruction({"id": "language:response_language", "language": "en"})
    assert len({follows(doubtful, instruction) for _ in range(10)}) == 1


@pytest.mark.parametrize(
    ("described", "field", "said"),
    [
        ("no_comma", "", "is no object"),
        ({"id": "punctuation:no_coma"}, ".id", "the kinds are"),
        ({"id": "punctuation:no_comma", "much": 1}, ".much", "takes none"),
        ({"id": "keywords:existence"}, ".keywords", "is missing; keywords:existence needs a list of texts"),
        ({"id": "keywords:existence", "keywords": ["a", 1]}, ".keywords", "give a list of texts"),
        ({"id": "keywords:existence", "keywords": []}, ".keywords", "give a list of texts"),
        ({"id": "length_constraints:number_words", "num_words": True, "relation": AT_LEAST}, ".num_words", "whole"),
        ({"id": "length_constraints:number_words", "num_words": 3, "relation": "more"}, ".relation", "'at least'"),
        (
            {"id": "keywords:letter_frequency", "letter": "ab", "let_frequency": 1, "let_relation": AT_LEAST},
            ".letter",
            "one character",
        ),
    ],
)
def test_what_is_no_instruction_is_refused_with_field_and_remedy(described: object, field: str, said: str) -> None:
    with pytest.raises(InstructionError) as refusal:
        read_instruction(described)
    assert refusal.value.field == field
    assert said in refusal.value.problem
