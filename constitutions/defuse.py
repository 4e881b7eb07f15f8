"""Makes text from a user harmless inside the block that the model reads, changing as little of it as possible.

Two kinds of markup must not come out of a principle:

- the *delimiter*: `<constitution` or `</constitution`, which would end the block early or open a second one;
- *control tokens* of chat templates (`<|im_end|>`, `<end_of_turn>`, `</s>`, `[/INST]`, `<</SYS>>`, `</think>`, ...):
  the upstream's tokenizer turns the text of one into the token itself, wherever it stands.

The rule: where either is found, its angle and square brackets become round ones, and nothing else changes:
`</constitution>` becomes `(/constitution)`, `<|im_end|>` becomes `(|im_end|)`. `x < y`, `<b>` and `[1]` stay.

It is looked for in what the text looks like, not in how it is spelled: compatibility forms (fullwidth, ligatures,
mathematical letters) count as what they stand for, case does not count, and neither do characters that do not show
(zero-width and other format characters, variation selectors) nor combining marks. For the delimiter, whitespace between
any two of its characters does not count either, and letters of other scripts count as the Latin ones they look like.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class MarkupKind(StrEnum):
    """What a piece of markup would do to the block if it were sent as it is."""

    DELIMITER = "delimiter"
    CONTROL_TOKEN = "control token"  # noqa: S105 - a token of a tokenizer, not a secret


@dataclass(frozen=True, slots=True)
class Markup:
    """A piece of markup in a text: `text[start:end]`; `brackets` are the positions in the text that are defused."""

    kind: MarkupKind
    start: int
    end: int
    brackets: tuple[int, ...]


# What NFKD leaves apart though it looks alike: Cyrillic and Greek letters of the word, slashes and angle brackets.
_LOOK_ALIKES = str.maketrans(
    "\u0441\u043e\u03bf\u043f\u0455\u0442\u03c4\u0456\u03b9\u0131\u03c5\u2044\u2215\u29f8\u2039\u3008\u27e8\u276e\u02c2\u1438\u203a\u3009\u27e9\u276f\u02c3\u1433",
    "coonsttiiiu///<<<<<<>>>>>>",
)

_OPEN_TO_ROUND = {"<": "(", "[": "(", ">": ")", "]": ")"}

_IGNORED_CATEGORIES = frozenset({"Cf", "Mn", "Me", "Cn"})
# Letters and symbols that show as nothing.
_IGNORED = frozenset("\u115f\u1160\u3164\uffa0\u2800")

_DELIMITER = re.compile(r"<\s*(?:[/\\]\s*)*" + r"\s*".join("constitution") + r"(?:\s*>)?")

_BRACKETED_WORDS = (
    r"</?(?:s|bos|eos|pad|unk|mask|sop|eop|think|tool_call|tool_response|start_of_turn|end_of_turn)>"
    r"|\[/?(?:inst|system_prompt|available_tools|tool_calls|tool_results|tool_content|think|gmask|smask)\]"
    r"|<</?sys>>"
)
# `<|name|>` of most templates, and the half-barred `<|name>` and `<name|>`. A name has no whitespace, so that the
# operators of `f <| x |> g` are left alone.
_BARRED = r"<\|[^\s<>|]{1,80}\|?>|<[^\s<>|]{1,80}\|>"
_CONTROL_TOKEN = re.compile(f"{_BARRED}|{_BRACKETED_WORDS}")


def defuse(text: str) -> str:
    """Return `text` with the brackets of every delimiter and control token made round; idempotent, same length."""
    while found := find_markup(text):
        chars = list(text)
        # A set: a delimiter and a control token can share a bracket, as in `</constitution|>`.
        for position in {position for markup in found for position in markup.brackets}:
            chars[position] = _round(chars[position])
        text = "".join(chars)
    return text


def find_markup(text: str) -> tuple[Markup, ...]:
    """Return the delimiters and control tokens in `text`: the delimiters first, each kind in order of position."""
    look, origin = _appearance(text)
    found = []
    # Another skeleton only for the delimiter: look-alike letters do not fool a tokenizer.
    for kind, pattern, appearance in (
        (MarkupKind.DELIMITER, _DELIMITER, look.translate(_LOOK_ALIKES)),
        (MarkupKind.CONTROL_TOKEN, _CONTROL_TOKEN, look),
    ):
        for match in pattern.finditer(appearance):
            span = range(match.start(), match.end())
            brackets = sorted({origin[at] for at in span if appearance[at] in _OPEN_TO_ROUND})
            found.append(Markup(kind, origin[span[0]], origin[span[-1]] + 1, tuple(brackets)))
    return tuple(found)


def _appearance(text: str) -> tuple[str, list[int]]:
    """Return what `text` looks like, and for each character of that the position in `text` it comes from."""
    look: list[str] = []
    origin: list[int] = []
    for position, char in enumerate(text):
        shape = char if "!" < char < "A" or "Z" < char < "\x7f" else _shape(char)
        look.append(shape)
        origin.extend([position] * len(shape))
    return "".join(look), origin


@lru_cache(maxsize=4096)
def _shape(char: str) -> str:
    # Folding case can bring new compatibility forms (U+1E97), so it stands between two decompositions.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    return "".join(
        " " if part.isspace() else part
        for part in folded
        if part not in _IGNORED and unicodedata.category(part) not in _IGNORED_CATEGORIES
    )


def _round(char: str) -> str:
    return _OPEN_TO_ROUND[_shape(char).translate(_LOOK_ALIKES)[:1]]
