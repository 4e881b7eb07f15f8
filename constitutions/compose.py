"""How a constitution becomes part of a request. Pure and deterministic; nothing here varies between two calls.

The written rule
================

**The block.** The principles, numbered from 1 in their order, one per line, between `<constitution>` and
`</constitution>`, after an introduction that tells the model what they are. Line breaks inside a principle become
spaces, so numbering cannot be faked; delimiters and control tokens inside one are defused (`defuse.py`), so that the
block cannot be closed from within. Principles of weight 0 are left out; if none is left the block is empty and nothing
is added anywhere. Dimensions, weights and notes are not in it, nor is anything else that varies: the same principles
give the same bytes, which is what the upstream's prefix cache needs.

**Where it goes in a list of messages.** With `Placement.SYSTEM`:

1. The first message has the role `system` or `developer`: the block goes to the start of that message's content.
   Its role and every other key stay.
2. Otherwise a new system message with the block is put before all others. System and developer messages further down
   are ordinary messages to this rule.

With `Placement.FIRST_USER`, for chat templates without a system role: the block goes to the start of the first user
message's content, wherever it stands; if there is none, a new user message with the block is put before all others.

**How it goes into a content.** A string: block, blank line, the string. A list of parts: a new first text part with
block and blank line (upstreams join parts without a separator). Null or absent: the block alone. A content of any
other type is not for us to judge: that message stays as it is for the upstream to refuse, and the block gets a new
message before all others.

**Elsewhere.** `instructions` of the Responses API and `system` of the Anthropic API are such contents too, and follow
the same rule; a value of another type stays as it is for the upstream to refuse.

Every other message stays equal and in order. Inputs are never modified; what is unchanged is shared, not copied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from constitutions.constitution import Constitution
from constitutions.defuse import defuse

OPENING: Final = "<constitution>"
CLOSING: Final = "</constitution>"
INTRODUCTION: Final = (
    "These are the user's own principles, the most important first. "
    "They hold for the whole conversation: follow them in every reply."
)
SEPARATOR: Final = "\n\n"
"""Between the block and what the client wrote after it."""

# Every character that starts a new line for str.splitlines or for Unicode (UAX 14), with the blanks around it.
_LINE_BREAK = re.compile("[ \t]*[\n\v\f\r\x1c-\x1e\x85\u2028\u2029][\\s\x85]*")


class Placement(StrEnum):
    """Where the constitution goes; `FIRST_USER` is for chat templates without a system role."""

    SYSTEM = "system"
    FIRST_USER = "first_user"


def render_block(constitution: Constitution) -> str:
    """Return the delimited text that the model reads, or an empty string if every principle has weight 0."""
    texts = [rendered_text(principle.text) for principle in constitution.principles if principle.weight > 0]
    if not texts:
        return ""
    numbered = (f"{number}. {text}" for number, text in enumerate(texts, 1))
    return "\n".join((OPENING, INTRODUCTION, *numbered, CLOSING))


def rendered_text(text: str) -> str:
    """Return the text of one principle as the block has it: on one line, and defused."""
    return defuse(_LINE_BREAK.sub(" ", text))


def compose_messages(
    messages: Sequence[dict[str, Any]], block: str, placement: Placement = Placement.SYSTEM
) -> list[dict[str, Any]]:
    """Return the messages to send upstream: those of the client with `block` placed by the rule above."""
    composed = list(messages)
    if not block:
        return composed
    if placement is Placement.SYSTEM:
        role = "system"
        index = 0 if composed and composed[0].get("role") in ("system", "developer") else None
    else:
        role = "user"
        index = next((at for at, message in enumerate(composed) if message.get("role") == "user"), None)
    if index is not None:
        message = composed[index]
        content = message.get("content")
        if content is None or isinstance(content, (str, list)):
            composed[index] = {**message, "content": _prepend(block, content)}
            return composed
    composed.insert(0, {"role": role, "content": block})
    return composed


def compose_instructions(block: str, instructions: str | None) -> str | None:
    """Return the `instructions` of a Responses API request with `block` before what the client sent."""
    if not block or not (instructions is None or isinstance(instructions, str)):
        return instructions
    composed: str = _prepend(block, instructions)
    return composed


def compose_anthropic_system(block: str, system: str | list[Any] | None) -> str | list[Any] | None:
    """Return the `system` of an Anthropic Messages API request with `block` before what the client sent."""
    if not block or not (system is None or isinstance(system, (str, list))):
        return system
    composed: str | list[Any] = _prepend(block, system)
    return composed


def _prepend(block: str, content: Any) -> Any:
    if content is None:
        return block
    if isinstance(content, str):
        return block + SEPARATOR + content
    return [{"type": "text", "text": block + SEPARATOR}, *content]
