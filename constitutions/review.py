"""What a user should know about a constitution before it is used: warnings, none of which makes it invalid."""

from __future__ import annotations

from collections.abc import Iterator

from constitutions.compose import render_block
from constitutions.constitution import Constitution, Principle, is_visible
from constitutions.defuse import MarkupKind, defuse, find_markup
from constitutions.plain import shown
from constitutions.similarity import similarity, trigrams

LONG_BLOCK_CHARS = 8000
"""Length of the rendered block, in characters, above which its cost is worth a warning."""
LARGE_CONTEXT_SHARE = 0.25
"""Share of the model's context window above which the block leaves little room for the conversation."""
NEAR_DUPLICATE_SIMILARITY = 0.8
"""Similarity, from 0 to 1, above which two principles probably say the same."""

_MARKUP = {
    MarkupKind.DELIMITER: "the beginning or end of the constitution",
    MarkupKind.CONTROL_TOKEN: "a control token of a chat template",
}

# Zero-width joiners are part of the spelling of several scripts and of many emoji.
_JOINERS = frozenset("\u200c\u200d")


def review(
    constitution: Constitution, *, block_tokens: int | None = None, context_tokens: int | None = None
) -> tuple[str, ...]:
    """Return warnings in plain English, each with what to do; those on one principle name it by its path.

    `block_tokens` is the length of the rendered block and `context_tokens` the model's context window, by the
    upstream's tokenizer; where either is unknown, length is judged by characters.
    """
    warnings = [
        f"principles[{index}]{warning}"
        for index, principle in enumerate(constitution.principles)
        for warning in _of_principle(principle)
    ]
    warnings.extend(_near_duplicates(constitution))
    block = render_block(constitution)
    if not block:
        warnings.append("Every principle has weight 0, so nothing is sent: give at least one a weight above 0.")
    elif block_tokens is not None and context_tokens:
        if block_tokens > LARGE_CONTEXT_SHARE * context_tokens:
            warnings.append(
                f"The constitution takes {block_tokens} of the model's {context_tokens} tokens "
                f"({block_tokens / context_tokens:.0%}) in every request: shorten it to leave room for the rest."
            )
    elif len(block) > LONG_BLOCK_CHARS:
        warnings.append(
            f"The constitution is {len(block)} characters long as it is sent, in every request: "
            "fewer and shorter principles are followed better."
        )
    return tuple(warnings)


def _of_principle(principle: Principle) -> Iterator[str]:
    if principle.weight == 0:
        yield " has weight 0 and is not sent: give it a weight above 0 to use it."
    text = principle.text
    found = find_markup(text)
    for kind, what in _MARKUP.items():
        spans = [text[markup.start : markup.end] for markup in found if markup.kind is kind]
        if spans:
            others = f" and {len(spans) - 1} more like it" if len(spans) > 1 else ""
            yield (
                f".text: {shown(spans[0])}{others} could be read as {what}; it is sent as {shown(defuse(spans[0]))}: "
                "write it in other words."
            )
    if "\n" in text:
        yield ".text has several lines, which are sent as one: make several principles of it if order or layout matter."
    hidden = sum(not is_visible(char) and not char.isspace() and char not in _JOINERS for char in text)
    if hidden:
        yield f".text contains {hidden} character{'s' * (hidden > 1)} that cannot be seen: retype it if not intended."


def _near_duplicates(constitution: Constitution) -> Iterator[str]:
    sent = [
        (index, trigrams(principle.text))
        for index, principle in enumerate(constitution.principles)
        if principle.weight > 0
    ]
    for position, (later, text) in enumerate(sent):
        like = (index for index, earlier in sent[:position] if similarity(earlier, text) > NEAR_DUPLICATE_SIMILARITY)
        first = next(like, None)
        if first is not None:
            yield f"principles[{later}].text is nearly the same as principles[{first}].text: keep the better one."
