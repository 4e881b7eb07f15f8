"""Packing: all answers of one prompt, and a question after each of their cuts, as one sequence with a tree's mask.

The prompt is computed once for all its answers, and an answer once for all its cuts, as vLLM's prefix cache has it at
serving time. A token sees what it would see if its branch stood alone, and has the position it would have there:

    prompt ── answer 1 ──┬── question after 1 of its tokens
          │              └── question after 9 of its tokens
          └── answer 2 ───── question after 4 of its tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive.engine import TokenIds


@dataclass(frozen=True, slots=True)
class Place:
    """Where a question stands: after that many tokens of that answer, by its index in the group."""

    answer: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A prompt and its answers.

    token_ids, positions: shape (tokens,). mask: (tokens, tokens), True where the row's token sees the column's.
    starts: index of each answer's first token. prompt: length of the prompt, 1 or more.
    """

    token_ids: Tensor
    positions: Tensor
    mask: Tensor
    starts: tuple[int, ...]
    prompt: int

    def before(self, place: Place) -> int:
        """Return the index of the last token of the partial response, the prompt's last where it has none."""
        return self.starts[place.answer] + place.tokens - 1 if place.tokens else self.prompt - 1

    def producer(self, place: Place) -> int:
        """Return the index of the token whose logits produced the partial response's last one.

        There a read-out of that response is read. A response without tokens has the prompt's last.
        """
        return self.before(Place(place.answer, max(0, place.tokens - 1)))


def pack(prompt: TokenIds, answers: Sequence[TokenIds]) -> Packed:
    """Return the prompt and its answers as one sequence. Raises `ValueError` for an empty prompt."""
    if not prompt:
        raise ValueError("a prompt has at least one token")
    ids, positions, branch, starts = list(prompt), list(range(len(prompt))), [-1] * len(prompt), []
    for index, answer in enumerate(answers):
        starts.append(len(ids))
        ids += answer
        positions += range(len(prompt), len(prompt) + len(answer))
        branch += [index] * len(answer)
    branches, order = torch.tensor(branch), torch.arange(len(ids))
    sees = (branches[None, :] == -1) | (branches[None, :] == branches[:, None])
    mask = sees & (order[None, :] <= order[:, None])
    return Packed(torch.tensor(ids), torch.tensor(positions), mask, tuple(starts), len(prompt))


def question_positions(packed: Packed, places: Sequence[Place], length: int) -> Tensor:
    """Return the positions of a question of that many tokens at each place. Shape (places * length,)."""
    first = torch.tensor([packed.prompt + place.tokens for place in places])
    return (first[:, None] + torch.arange(length)[None, :]).flatten()


def question_mask(packed: Packed, places: Sequence[Place], length: int) -> Tensor:
    """Return what each question's tokens see. Shape (places * length, tokens + places * length), True where it does."""
    tokens, count = len(packed.token_ids), len(places)
    sees = torch.zeros(count, tokens + count * length, dtype=torch.bool)
    sees[:, : packed.prompt] = True
    for row, place in enumerate(places):
        start = packed.starts[place.answer]
        sees[row, start : start + place.tokens] = True
    mask = sees.repeat_interleave(length, dim=0)
    own = torch.ones(length, length, dtype=torch.bool).tril()
    for row in range(count):
        first = row * length
        mask[first : first + length, tokens + first : tokens + first + length] = own
    return mask
