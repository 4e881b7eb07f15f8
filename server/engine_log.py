"""What vLLM 0.32's log says: how far a start has come, and why it failed."""

from __future__ import annotations

import re

# What vLLM logs when a phase of its start begins, in order.
_PHASES = (
    ("non-default args", "reading the model's configuration"),
    ("Initializing a V1 LLM engine", "starting the engine process"),
    ("Starting to load model", "loading weights"),
    ("KV cache size", "warming up"),
    ("Starting vLLM server", "opening the HTTP server"),
)

_REMEDIES = (
    (r"unrecognized arguments|invalid choice|expected (one|at least one) argument", "Correct the setting engine_args."),
    (r"max_model_len .* is greater than", "Pass a smaller --max-model-len in engine_args."),
    (
        r"is larger than the available KV cache memory|KV cache is needed",
        "Raise VLLM_CPU_KVCACHE_SPACE (GiB), or pass a smaller --max-model-len in engine_args.",
    ),
    (
        r"requested memory for kv|memory utilization|Cannot allocate memory|MemoryError|out of memory|CPUAllocator",
        "Free memory, or lower VLLM_CPU_KVCACHE_SPACE (GiB; on a GPU --gpu-memory-utilization in engine_args).",
    ),
    (r"Address already in use", "Another process took the port; start again, or set engine_port."),
    (r"No space left on device", "Free disk space where cache_dir and data_dir are."),
    (
        r"not a valid model identifier|not a local folder|Repository Not Found|couldn't connect",
        "Correct the setting model: a directory with a checkpoint, or a hub name that this machine can reach.",
    ),
)

# A line that names an error, with or without the "(EngineCore pid=7) ERROR 11-23 22:40:01 [core.py:9] " before it.
_PREFIX = re.compile(r"^\([^)]*\) (?:(?:ERROR|CRITICAL) [\d:\- ]+\[[^\]]*\] )?")
_ERROR = re.compile(r"^(?:[\w.]+(?:Error|Exception): |[\w.]+: error: |\s*Value error, )")
# The API server's own error when another of its processes failed first.
_CONSEQUENCE = "Engine core initialization failed"
_LONGEST_LINE = 400


def phase(log: str) -> str:
    """Return what a starting vLLM is doing, for a person who waits."""
    reached = [name for marker, name in _PHASES if marker in log]
    return reached[-1] if reached else "importing its code"


def errors(log: str, most: int = 5) -> list[str]:
    """Return the last distinct errors that the log names, oldest first, without tracebacks and line prefixes."""
    lines = (_PREFIX.sub("", line) for line in log.splitlines())
    named = (line.strip()[:_LONGEST_LINE] for line in lines if _ERROR.match(line) and _CONSEQUENCE not in line)
    return list(dict.fromkeys(named))[-most:]


def explain(log: str, tail_lines: int = 20) -> tuple[str, str]:
    """Return a remedy, and the lines that show what went wrong: the errors, or the last lines where none is named."""
    lines = "\n".join(errors(log) or log.splitlines()[-tail_lines:])
    remedies = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, lines, re.IGNORECASE))
    return next(remedies, "The whole log says more."), lines
