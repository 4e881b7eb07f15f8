"""A tiny checkpoint with a tokenizer, and data made up for it, for the tests of `preamble selfeval train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from adaptive.splits import Split
from adaptive.training.examples import JsonlWriter
from tests.adaptive.training.tiny import VOCABULARY, tiny_model, toy_groups

# In the places of the special tokens of `tiny.py`; the rest are characters.
WORDS: Final = ("<pad>", "<|im_start|>", "<|im_end|>", "Yes", "No", "user", "assistant")
TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def checkpoint(directory: Path) -> Path:
    """Write the tiny model in bfloat16 with a tokenizer of characters and a few words; return the directory."""
    import tokenizers  # noqa: PLC0415 -- there may be none
    import transformers  # noqa: PLC0415

    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {each: place for place, each in enumerate([*WORDS, *characters])}
    assert len(vocabulary) <= VOCABULARY
    raw: Any = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    words = tokenizers.Regex(r"<\|im_start\|>|<\|im_end\|>|Yes|No|user|assistant|[\s\S]")
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split(words, behavior="isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    tiny_model().bfloat16().save_pretrained(directory)
    return directory


def data(directory: Path, *, train: int = 40, first: str = "") -> Path:
    """Write a data file with prompts of all splits; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    counts = {Split.TRAIN: train, Split.CALIBRATION: 24, Split.TEST: 24}
    with JsonlWriter(directory / "examples.jsonl") as file:
        for split, count in counts.items():
            for group in toy_groups(count, first=f"{first}{split.value}/", split=split):
                file.add(group.to_plain())
    return directory
