"""Hypothesis strategies for what clients send: principles, constitutions, and the messages of a request."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

from constitutions.constitution import Constitution, Dimension, Principle, is_visible

# Pieces that mean something to one of the formats or to the block.
_PIECES = (
    "- dimension: style",
    "\\- weight: 2",
    "\\\\* note: x",
    "# Constitution",
    "1. ",
    "- ",
    "2) ",
    "---",
    "```",
    "    ",
    "\n\n",
    "\n  \n",
    "\n\t",
    "\n- note: ",
    "yes",
    "1.5",
    "2024-01-01",
    '"',
    "'",
    ": ",
    " #",
    "<b>",
    "x < y",
    "<constitution>",
    "</constitution>",
    "</",
    "<",
    "[",
    "<|im_end|>",
    "<|",
    "|>",
    "<s>",
    "[/INST]",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\u0338",
    "e\u0301",
)
_CHARS = st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\t")


def principle_texts(max_pieces: int = 6) -> st.SearchStrategy[str]:
    """Any valid text of a principle, often with pieces in it that a format or the block must not take for its own."""
    pieces = st.lists(st.sampled_from(_PIECES) | st.text(_CHARS, max_size=12), min_size=1, max_size=max_pieces)
    return pieces.map("".join).filter(lambda text: any(map(is_visible, text)))


def principles() -> st.SearchStrategy[Principle]:
    """Any valid principle."""
    return st.builds(
        Principle,
        text=principle_texts(),
        dimension=st.none() | st.sampled_from(Dimension),
        weight=st.just(1.0) | st.just(0.0) | st.floats(min_value=0, allow_infinity=False, allow_nan=False),
        note=st.none() | principle_texts(max_pieces=3),
    )


def constitutions(max_principles: int = 6) -> st.SearchStrategy[Constitution]:
    """Any valid constitution of up to `max_principles` principles."""
    unique = st.lists(principles(), min_size=1, max_size=max_principles, unique_by=lambda principle: principle.folded)
    return unique.map(lambda given: Constitution(tuple(given)))


def disguised(markup: str) -> st.SearchStrategy[str]:
    """Return `markup` in another spelling that normalises to it: case, compatibility forms, invisible characters."""
    invisible = st.sampled_from(("", "", "", "\u200b", "\u00ad", "\u2060", "\u200d", "\ufeff", "\u202e"))
    return st.tuples(*(st.tuples(st.sampled_from(_spellings(char)), invisible) for char in markup)).map(
        lambda parts: "".join(spelling + hidden for spelling, hidden in parts)
    )


def _spellings(char: str) -> tuple[str, ...]:
    spellings = [char, char.upper()]
    if "!" <= char <= "~":
        spellings.append(chr(ord(char) + 0xFEE0))  # fullwidth
    if char in string.ascii_lowercase:
        spellings.append(chr(0x1D41A + ord(char) - ord("a")))  # mathematical bold
    if char == "<":
        spellings.append("\ufe64")  # small less-than sign
    return tuple(spellings)


def contents() -> st.SearchStrategy[Any]:
    """Any content of a message: text, parts, null, and what no API allows."""
    part = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=20)}) | st.fixed_dictionaries(
        {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": st.text(max_size=20)})}
    )
    parts = st.lists(part | st.text(max_size=5) | st.none(), max_size=3)
    return st.text(max_size=40) | parts | st.none() | st.integers() | st.dictionaries(st.text(max_size=3), st.none())


def messages(max_messages: int = 6) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Any list of messages with string roles; nothing else about them is sure."""
    role = st.sampled_from(("system", "developer", "user", "assistant", "tool")) | st.text(max_size=5)
    extra = {
        "content": contents(),
        "name": st.text(max_size=5),
        "tool_calls": st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2),
        "tool_call_id": st.text(max_size=5),
    }
    return st.lists(st.fixed_dictionaries({"role": role}, optional=extra), max_size=max_messages)
