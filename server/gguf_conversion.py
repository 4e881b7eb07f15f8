"""Turn a GGUF file into an ordinary checkpoint. Run as a script by `checkpoint.py`; needs torch and transformers.

    python gguf_conversion.py MODEL.gguf EMPTY_DIRECTORY [ARTEFACT]

With an artefact of `adaptive/artefacts` the checkpoint is extended by it: trained self-evaluation.

Standard output has one line per phase, for the person who waits. The weights are dequantized to bfloat16: what vLLM
computes with, and twice as fast to read as float32.
"""

from __future__ import annotations

import shutil
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


def convert_and_extend(source: Path, target: Path, artefact: Path) -> None:
    """Write the checkpoint with an artefact's rows at the end of its vocabulary into `target`."""
    from adaptive.training.checkpoint import CheckpointError, extend_by_artefact  # noqa: PLC0415 - only with an artefact

    plain = target / ".plain"
    convert(source, plain)
    print("adding the trained self-evaluation", flush=True)  # noqa: T201 - the protocol with checkpoint.py
    try:
        extend_by_artefact(plain, target, artefact)
    except CheckpointError as error:
        raise SystemExit(str(error)) from error
    shutil.rmtree(plain)


if __name__ == "__main__":
    if len(sys.argv) > 3:  # noqa: PLR2004 - as the docstring has it
        convert_and_extend(*map(Path, sys.argv[1:4]))
    else:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
