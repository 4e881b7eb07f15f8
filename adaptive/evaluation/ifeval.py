"""IFEval's 25 kinds of instructions (arXiv 2311.07911), checked strictly: a reply follows one or it does not.

The rules are those of google-research's `instruction_following_eval`, its quirks included, in our own words and code.
Where they differ (sentences, words in capitals, letters that are none): `README.md`. An empty reply follows nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from adaptive.evaluation.texts import capital_words, detect_language, sentences, words

_RELATIONS: Final = ("at least", "less than")
_OPTIONS: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_WORD_ENDS: Final = re.compile(r"[.,?!'\"]")


class InstructionError(ValueError):
    """What is no instruction. field: the wrong one, beginning with a point, or nothing. problem: with its remedy."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Instruction:
    """id: its kind. arguments: of the kind's check, valid."""

    id: str
    arguments: Mapping[str, Any]


def read_instruction(described: object) -> Instruction:
    """Return the instruction that an object with an `id` and its arguments describes. Raises `InstructionError`."""
    if not isinstance(described, Mapping):
        raise InstructionError("", 'is no object; write one such as {"id": "punctuation:no_comma"}')
    kind = described.get("id")
    if not isinstance(kind, str) or kind not in INSTRUCTIONS:
        raise InstructionError(".id", f"is {kind!r}; the kinds are {', '.join(sorted(INSTRUCTIONS))}")
    takes, _ = INSTRUCTIONS[kind]
    arguments = {name: value for name, value in described.items() if name != "id"}
    for name in arguments:
        if name not in takes:
            raise InstructionError(f".{name}", f"is unknown; {kind} takes {', '.join(takes) or 'none'}")
    for name, what in takes.items():
        if name not in arguments:
            raise InstructionError(f".{name}", f"is missing; {kind} needs {what}")
        if not _ARGUMENTS[what](arguments[name]):
            raise InstructionError(f".{name}", f"is {arguments[name]!r}; give {what}")
    return Instruction(kind, arguments)


def follows(reply: str, instruction: Instruction) -> bool:
    """Return True when the reply follows the instruction."""
    _, check = INSTRUCTIONS[instruction.id]
    return bool(reply.strip()) and check(reply, **instruction.arguments)


# Keywords.


def _has_keywords(reply: str, keywords: list[str]) -> bool:
    return all(_occurrences(reply, keyword) for keyword in keywords)


def _keyword_frequency(reply: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(_occurrences(reply, keyword.strip()), relation, frequency)


def _without_words(reply: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", reply, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(reply: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(reply.lower().count(letter.lower()), let_relation, let_frequency)


def _occurrences(reply: str, keyword: str) -> int:
    """Return how often it is there, in whatever case, also as a part of a longer word."""
    return len(re.findall(re.escape(keyword), reply, re.IGNORECASE))


# Language and case. A text whose language cannot be told is given the benefit of the doubt.


def _in_language(reply: str, language: str) -> bool:
    return detect_language(reply) in {language, None}


def _english_capital(reply: str) -> bool:
    return reply.isupper() and _in_language(reply, "en")


def _english_lowercase(reply: str) -> bool:
    return reply.islower() and _in_language(reply, "en")


def _capital_words(reply: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(capital_words(reply), capital_relation, capital_frequency)


# Length.


def _number_of_words(reply: str, num_words: int, relation: str) -> bool:
    return _compare(words(reply), relation, num_words)


def _number_of_sentences(reply: str, num_sentences: int, relation: str) -> bool:
    return _compare(sentences(reply), relation, num_sentences)


def _number_of_paragraphs(reply: str, num_paragraphs: int) -> bool:
    """Paragraphs are parted by `***`; one before the first or after the last divider may be empty, no other."""
    return _parts(re.split(r"\s?\*\*\*\s?", reply), num_paragraphs) is not None


def _first_word_of_paragraph(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by an empty line. Empty ones do not count, but keep their place in the order."""
    paragraphs = reply.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if count != num_paragraphs or nth_paragraph > count:
        return False
    paragraph = paragraphs[nth_paragraph - 1].split()
    if not paragraph:
        return False
    word = _WORD_ENDS.split(paragraph[0].lstrip("'").lstrip('"'), maxsplit=1)[0]
    return word.lower() == first_word.lower()


# Content and format.


def _placeholders(reply: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", reply)) >= num_placeholders


def _postscript(reply: str, postscript_marker: str) -> bool:
    spelled = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return re.search(spelled.get(marker, re.escape(marker.lower())), reply.lower()) is not None


def _bullets(reply: str, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in reply.split("\n")]
    starred = sum(line.startswith("*") and len(line) > 1 and line[1] != "*" for line in lines)
    return starred + sum(line.startswith("-") for line in lines) == num_bullets


def _constrained(reply: str) -> bool:
    return any(option in reply for option in _OPTIONS)


def _highlighted(reply: str, num_highlights: int) -> bool:
    found = re.findall(r"\*[^\n*]*\*", reply) + re.findall(r"\*\*[^\n*]*\*\*", reply)
    return sum(bool(each.strip("*").strip()) for each in found) >= num_highlights


def _sections(reply: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", reply)) >= num_sections


def _json_format(reply: str) -> bool:
    text = reply.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(reply: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", reply))


# Combinations, beginning and end, punctuation.


def _two_responses(reply: str) -> bool:
    responses = _parts(reply.split("******"), 2)
    return responses is not None and responses[0] != responses[1]


def _repeats_prompt(reply: str, prompt_to_repeat: str) -> bool:
    return reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(reply: str, end_phrase: str) -> bool:
    return reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(reply: str) -> bool:
    text = reply.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _no_comma(reply: str) -> bool:
    return "," not in reply


def _parts(pieces: list[str], count: int) -> list[str] | None:
    """Return the pieces, stripped, if there are that many; the first and the last may be empty, and do not count."""
    stripped = [piece.strip() for piece in pieces]
    if not all(stripped[1:-1]):
        return None
    found = [piece for piece in stripped if piece]
    return found if len(found) == count else None


def _compare(count: int, relation: str, threshold: int) -> bool:
    return count >= threshold if relation == "at least" else count < threshold


_ARGUMENTS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "a text": lambda value: isinstance(value, str) and bool(value.strip()),
    "one character": lambda value: isinstance(value, str) and len(value.strip()) == 1,
    "a list of texts": lambda value: isinstance(value, list) and bool(value) and all(map(_ARGUMENTS["a text"], value)),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "a place from 1": lambda value: _ARGUMENTS["a whole number"](value) and value >= 1,
    "'at least' or 'less than'": lambda value: value in _RELATIONS,
}
"""What an argument can be, as it is said to who has it wrong."""

_TEXT, _CHARACTER, _LIST, _COUNT, _PLACE, _RELATION = _ARGUMENTS

INSTRUCTIONS: Final[Mapping[str, tuple[Mapping[str, str], Callable[..., bool]]]] = {
    "change_case:capital_word_frequency": (
        {"capital_frequency": _COUNT, "capital_relation": _RELATION},
        _capital_words,
    ),
    "change_case:english_capital": ({}, _english_capital),
    "change_case:english_lowercase": ({}, _english_lowercase),
    "combination:repeat_prompt": ({"prompt_to_repeat": _TEXT}, _repeats_prompt),
    "combination:two_responses": ({}, _two_responses),
    "detectable_content:number_placeholders": ({"num_placeholders": _COUNT}, _placeholders),
    "detectable_content:postscript": ({"postscript_marker": _TEXT}, _postscript),
    "detectable_format:constrained_response": ({}, _constrained),
    "detectable_format:json_format": ({}, _json_format),
    "detectable_format:multiple_sections": ({"section_spliter": _TEXT, "num_sections": _COUNT}, _sections),
    "detectable_format:number_bullet_lists": ({"num_bullets": _COUNT}, _bullets),
    "detectable_format:number_highlighted_sections": ({"num_highlights": _COUNT}, _highlighted),
    "detectable_format:title": ({}, _title),
    "keywords:existence": ({"keywords": _LIST}, _has_keywords),
    "keywords:forbidden_words": ({"forbidden_words": _LIST}, _without_words),
    "keywords:frequency": ({"keyword": _TEXT, "frequency": _COUNT, "relation": _RELATION}, _keyword_frequency),
    "keywords:letter_frequency": (
        {"letter": _CHARACTER, "let_frequency": _COUNT, "let_relation": _RELATION},
        _letter_frequency,
    ),
    "language:response_language": ({"language": _TEXT}, _in_language),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": _COUNT, "nth_paragraph": _PLACE, "first_word": _TEXT},
        _first_word_of_paragraph,
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": _COUNT}, _number_of_paragraphs),
    "length_constraints:number_sentences": ({"num_sentences": _COUNT, "relation": _RELATION}, _number_of_sentences),
    "length_constraints:number_words": ({"num_words": _COUNT, "relation": _RELATION}, _number_of_words),
    "punctuation:no_comma": ({}, _no_comma),
    "startend:end_checker": ({"end_phrase": _TEXT}, _ends_with),
    "startend:quotation": ({}, _quoted),
}
"""Kind to its arguments and its check."""
