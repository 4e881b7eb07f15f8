"""What a constitution does to a chat request: the message that carries it, its length, and what to be warned of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from constitutions.compose import Placement, compose_messages, render_block
from constitutions.constitution import Constitution
from constitutions.review import review
from server.errors import UpstreamError
from server.wire import PreviewBody

CountTokens = Callable[[str], Awaitable[int | None]]
"""Returns how many tokens a text has by the upstream's tokenizer, None if it cannot say."""


async def preview(
    constitution: Constitution,
    messages: Sequence[dict[str, Any]],
    *,
    tag: str | None,
    placement: Placement,
    count_tokens: CountTokens,
    context_tokens: int | None,
) -> PreviewBody:
    """Return what the upstream would get for `messages` with this constitution. Raises nothing that is expected.

    `tag` names the constitution if it is a stored version. `context_tokens`: the model's context window, if known.
    """
    block = render_block(constitution)
    composed = compose_messages(messages, block, placement)
    # What is unchanged is the very same object; the one message that is not carries the constitution.
    given = {id(message) for message in messages}
    carrier = next((message for message in composed if id(message) not in given), None)
    text = "" if carrier is None else _text_of(carrier)
    token_count = await _count(text, count_tokens)
    block_tokens = token_count if text == block else await _count(block, count_tokens)
    warnings = list(review(constitution, block_tokens=block_tokens, context_tokens=context_tokens))
    if token_count is None:
        warnings.append("The upstream could not count tokens now: ask again when it can be reached.")
    if placement is Placement.FIRST_USER and carrier is not None:
        warnings.append(
            "The model's chat template has no system role, so the constitution goes into the first user message, "
            "which models follow less strictly."
        )
    return PreviewBody(
        object="constitution.preview",
        constitution=tag,
        placement=placement,
        system_message=carrier,
        token_count=token_count,
        character_count=len(text),
        messages=composed,
        warnings=warnings,
    )


async def _count(text: str, count_tokens: CountTokens) -> int | None:
    if not text:
        return 0
    try:
        return await count_tokens(text)
    except UpstreamError:
        return None


def _text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    parts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(text for text in parts if isinstance(text, str))
