"""Turn a GGUF file into an ordinary checkpoint. Run as a script by `checkpoint.py`; needs torch and transformers.

    python gguf_conversion.py MODEL.gguf EMPTY_DIRECTORY

Standard output has one line per phase, for the person who waits. The weights are dequantized to bfloat16: what
vLLM computes with, and twice as fast to read as float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, target: Path) -> None:
    """Write weights, configuration, generation configuration and tokenizer with its chat template into `target`."""
    folder, file = str(source.parent), source.name
    print("reading the tokenizer", flush=True)  # noqa: T201 - the protocol with checkpoint.py
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    if not tokenizer.chat_template:
        raise SystemExit(f"{file} has no chat template: it cannot be chatted with")
    print("dequantizing the weights", flush=True)  # noqa: T201 - the protocol with checkpoint.py
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    print("writing the checkpoint", flush=True)  # noqa: T201 - the protocol with checkpoint.py
    # GGUF does not say it; without it the tokenizer believes in 10^30 tokens.
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
