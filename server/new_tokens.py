"""Token ids that a model has for its self-evaluation alone: no client may ask for them, and none is ever in a reply.

Left alone they never are: their logits lie 48 and more below zero wherever the model writes, which at the highest
temperature of vLLM (2) leaves them less than 1e-12 of the probability. A client could still raise them, or lower what
is above them, with `logit_bias`, `allowed_token_ids` and, on /v1/completions, a `prompt` of token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from adaptive.engine import TokenIds
from server.errors import BadRequest

_LOWEST: Final = -100
"""vLLM clamps biases to this."""


@dataclass(frozen=True, slots=True)
class NewIds:
    """first: from there on, no id is in a text. named: those in use, ascending."""

    first: int
    named: TokenIds

    def guard(self, body: dict[str, Any]) -> None:
        """Refuse a body that names such an id. Raises `BadRequest`.

        A client's own `logit_bias` may lower ordinary tokens by as much as these lie below them, so it gets an entry
        for each of these. What is no list or object of ids is left to the upstream, which says better what is wrong.
        """
        allowed, bias, prompt = (body.get(name) for name in ("allowed_token_ids", "logit_bias", "prompt"))
        if isinstance(allowed, list):
            self._refuse(allowed, "allowed_token_ids")
        if isinstance(prompt, list):
            # After such tokens the likeliest next one is a label.
            self._refuse(prompt, "prompt")
            for index, each in enumerate(prompt):
                if isinstance(each, list):
                    self._refuse(each, f"prompt[{index}]")
        if isinstance(bias, dict) and bias:
            self._refuse([int(each) for each in bias if _is_whole(each)], "logit_bias")
            body["logit_bias"] = bias | {str(each): _LOWEST for each in self.named}

    def _refuse(self, ids: Sequence[Any], field: str) -> None:
        found = next((each for each in ids if type(each) is int and each >= self.first), None)
        if found is not None:
            raise BadRequest(
                f"'{field}' names the token {found}. From {self.first} on this model's tokens are there for its "
                "self-evaluation only, and no text has them. Leave it out.",
                param=field,
            )


def _is_whole(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdecimal()
