"""A random Llama with two layers, and groups from which it can learn: answers with one token in them are the good ones.

Imports torch in its functions: a test that calls them has skipped where there is none.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from adaptive.engine import TokenIds
from adaptive.splits import Split
from adaptive.training.examples import Answer, Group, cuts, win_or_tie_shares

VOCABULARY: Final = 128
HIDDEN: Final = 64
END: Final = 2
GOOD: Final = 7


def tiny_model(*, seed: int = 0, tied: bool = True) -> Any:
    """Return a frozen model in float32; as in real ones, one direction is large in all its states."""
    import torch  # noqa: PLC0415 -- there may be none
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 -- takes seconds

    torch.set_num_threads(1)  # with more, so small a model is slower
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)
    model.model.embed_tokens.weight *= 4.0
    model.model.embed_tokens.weight[:, 0] += 2.0
    return model


def tiny_checkpoint(path: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Write the model to that directory, and return it."""
    tiny_model(seed=seed, tied=tied).save_pretrained(path)
    return path


def toy_group(name: str, *, split: Split = Split.TRAIN, answers: int = 4, even: bool = False) -> Group:
    """Return answers of 3 to 9 tokens, every other one good. even: all are."""
    source = random.Random(name)  # noqa: S311 -- no secret
    rewards = [1.0 if even or place % 2 else 0.0 for place in range(answers)]
    shares = win_or_tie_shares(rewards)
    return Group(
        id=name,
        family="toy",
        split=split,
        messages=({"role": "user", "content": name},),
        constitution=None,
        prompt_ids=tuple(source.randrange(10, VOCABULARY) for _ in range(source.randint(2, 5))),
        answers=tuple(toy_answer(reward, share, source) for reward, share in zip(rewards, shares, strict=True)),
    )


def toy_groups(count: int, *, first: str = "g", split: Split = Split.TRAIN) -> tuple[Group, ...]:
    """Return that many groups."""
    return tuple(toy_group(f"{first}{place}", split=split) for place in range(count))


def toy_answer(reward: float, share: float, source: random.Random) -> Answer:
    """Return an answer; a good one has the good token at its beginning and in half of its other places."""
    ids = [source.randrange(10, VOCABULARY) for _ in range(source.randint(2, 8))]
    if reward:
        ids = [GOOD, *(GOOD if source.random() < 0.5 else each for each in ids[1:])]
    return made_answer((*ids, END), reward, share, source)


def made_answer(ids: Sequence[int], reward: float, share: float, source: random.Random) -> Answer:
    """Return an answer of these tokens."""
    token_ids: TokenIds = tuple(ids)
    return Answer(
        token_ids=token_ids,
        logprobs=tuple(-source.random() for _ in token_ids),
        text=" ".join(map(str, token_ids)),
        finish_reason="stop",
        reward=reward,
        passed=reward >= 1.0,
        win_or_tie=share,
        cuts=cuts(len(token_ids), 2, source),
    )
