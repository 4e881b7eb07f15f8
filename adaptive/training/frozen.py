"""The model that is trained to judge itself, seen as packed groups: states of its tokens, and questions after them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive.training.packing import Packed, Place, question_mask, question_positions


def load_model(checkpoint: Path, *, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return the checkpoint as a transformers causal language model, in evaluation mode and frozen."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 -- takes seconds

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval().requires_grad_(requires_grad=False)


class Judged:
    """A packed group inside the model. states: last hidden states of its tokens, normalised, (tokens, hidden)."""

    def __init__(self, model: Any, packed: Packed, *, gradient: bool = False) -> None:
        from transformers import DynamicCache  # noqa: PLC0415 -- takes seconds

        self.packed = packed
        self._body = model.model
        device, dtype = model.device, model.dtype
        self._cache = DynamicCache(config=model.config)
        with torch.set_grad_enabled(gradient):
            self.states: Tensor = self._body(
                input_ids=packed.token_ids[None].to(device),
                position_ids=packed.positions[None].to(device),
                attention_mask=_additive(packed.mask, dtype, device),
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state[0]

    def ask(self, places: Sequence[Place], embeddings: Tensor) -> Tensor:
        """Return the last state of a question at each place, (places, hidden). May be called once.

        embeddings: of the question's tokens, (length, hidden), with a gradient where they are trained.
        """
        length = len(embeddings)
        device, dtype = embeddings.device, self._body.dtype
        states = self._body(
            inputs_embeds=embeddings.to(dtype).repeat(len(places), 1)[None],
            position_ids=question_positions(self.packed, places, length)[None].to(device),
            attention_mask=_additive(question_mask(self.packed, places, length), dtype, device),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[0]
        found: Tensor = states.view(len(places), length, -1)[:, -1]
        return found


def _additive(mask: Tensor, dtype: torch.dtype, device: Any) -> Tensor:
    """Return a mask as attention adds it: 0 where a token is seen. Shape (1, 1, rows, columns)."""
    hidden = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return hidden[None, None].to(device)
