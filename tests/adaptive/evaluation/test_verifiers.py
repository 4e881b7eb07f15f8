"""Verifiers other than IFEval's, and what is said of a description that is none."""

from __future__ import annotations

from decimal import Decimal

import pytest

from adaptive.evaluation.verifiers import KINDS, Verdict, VerifierError, build, last_number

RIGHT, WRONG = Verdict(1.0, passed=True), Verdict(0.0, passed=False)


@pytest.mark.parametrize(
    ("described", "right", "wrong"),
    [
        ({"kind": "exact", "answer": "New York"}, (" New  York\n",), ("new york", "New York City", "")),
        ({"kind": "exact", "answer": ["yes", "ja"], "ignore_case": True}, ("Ja", "YES"), ("nein",)),
        ({"kind": "regex", "pattern": r"\b\d{4}\b"}, ("in 1984",), ("in 84", "")),
        ({"kind": "regex", "pattern": r"Answer: (\w+)", "answer": "b"}, ("Answer: a\nAnswer: b",), ("Answer: a", "b")),
        ({"kind": "json"}, ('{"a": 1}', "```json\n[1]\n```", "3"), ("{a: 1}", "it is {}", "")),
        ({"kind": "json", "keys": ["a", "b"]}, ('{"a": 1, "b": 2, "c": 3}',), ("no",)),
        (
            {"kind": "number", "answer": 18},
            ("18", "It is $18.", "16 + 2 = 18", "5 #### 18.0", "18%"),
            ("81", "", "18 or 19"),
        ),
        ({"kind": "number", "answer": "1,200"}, ("about 1200.00", "#### 1,200"), ("1 200", "120")),
        ({"kind": "number", "answer": -0.5, "tolerance": 0.1}, ("-.45", "-0.6"), ("0.5", "-0.61")),
        ({"kind": "ifeval", "instructions": [{"id": "punctuation:no_comma"}]}, ("none",), ("one, two",)),
        (
            {"kind": "no_repetition"},
            ("one two three", "a b c d", "It is so. It is so!", "the cat sat on the cat sat", "1 2 3 4, 2 3 4 5"),
            ("", " ?\n", "a b c d A, B\nc d!", "ha ha ha ha ha", "I say it is so, and it is, I say it is"),
        ),
        ({"kind": "no_repetition", "words": 1}, ("each word once",), ("Yes, yes", "")),
    ],
)
def test_a_right_reply_passes_and_a_wrong_one_does_not(
    described: object, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    verify = build(described)
    assert [(reply, verify(reply)) for reply in right if verify(reply) != RIGHT] == []
    assert [(reply, verify(reply)) for reply in wrong if verify(reply) != WRONG] == []


def test_every_kind_is_tried_above() -> None:
    assert set(KINDS) == {"exact", "regex", "json", "number", "ifeval", "no_repetition"}


def test_json_with_some_of_its_keys_is_rewarded_and_does_not_pass() -> None:
    assert build({"kind": "json", "keys": ["a", "b"]})('{"a": 1}') == Verdict(2 / 3, passed=False)


def test_a_reply_passes_ifeval_with_all_instructions_and_is_rewarded_for_each() -> None:
    instructions = [
        {"id": "punctuation:no_comma"},
        {"id": "startend:quotation"},
        {"id": "keywords:existence", "keywords": ["sea"]},
    ]
    verify = build({"kind": "ifeval", "instructions": instructions})
    assert verify('"the sea"') == RIGHT
    assert verify("the sea") == Verdict(2 / 3, passed=False)
    assert verify("") == WRONG


def test_the_number_after_the_marks_counts_and_else_the_last() -> None:
    assert last_number("first 3, #### 18 and done") == 18
    assert last_number("12 - 7 = 5 left") == 5
    assert last_number("costs 1,234.50 dollars") == Decimal("1234.50")
    assert last_number("18 ####") == 18
    assert last_number("none") is None


@pytest.mark.parametrize(
    ("described", "field"),
    [
        (None, "verifier"),
        ({"kind": "judge"}, "verifier.kind"),
        ({"kind": ["exact"]}, "verifier.kind"),
        ({"kind": "exact"}, "verifier.answer"),
        ({"kind": "exact", "answer": 3}, "verifier.answer"),
        ({"kind": "exact", "answer": "x", "ignore_case": "yes"}, "verifier.ignore_case"),
        ({"kind": "exact", "answr": "x"}, "verifier.answr"),
        ({"kind": "regex", "pattern": "("}, "verifier.pattern"),
        ({"kind": "json", "keys": "a"}, "verifier.keys"),
        ({"kind": "number", "answer": "many"}, "verifier.answer"),
        ({"kind": "number", "answer": True}, "verifier.answer"),
        ({"kind": "number", "answer": "NaN"}, "verifier.answer"),
        ({"kind": "number", "answer": 1, "tolerance": -1}, "verifier.tolerance"),
        ({"kind": "no_repetition", "words": 0}, "verifier.words"),
        ({"kind": "no_repetition", "words": True}, "verifier.words"),
        ({"kind": "no_repetition", "words": "4"}, "verifier.words"),
        ({"kind": "ifeval"}, "verifier.instructions"),
        ({"kind": "ifeval", "instructions": [{"id": "x"}]}, "verifier.instructions[0].id"),
    ],
)
def test_what_is_no_verifier_is_refused_with_its_field(described: object, field: str) -> None:
    with pytest.raises(VerifierError) as refusal:
        build(described)
    assert refusal.value.field == field
