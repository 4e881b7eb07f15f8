"""vLLM's log, in lines that vLLM 0.32.0 wrote (23 November 2026; paths shortened)."""

from __future__ import annotations

import pytest

from server.engine_log import errors, explain, phase

START = [
    "(APIServer pid=1) INFO 11-23 21:59:24 [api_utils.py:286] non-default args: {'host': '127.0.0.1'}",
    "(EngineCore pid=2) INFO 11-23 21:59:42 [core.py:133] Initializing a V1 LLM engine with config: model='m'",
    "(Worker pid=3) INFO 11-23 21:59:51 [cpu_model_runner.py:68] Starting to load model m...",
    "(EngineCore pid=2) INFO 11-23 21:59:54 [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens",
    "(APIServer pid=1) INFO 11-23 21:59:58 [entry.py:140] Starting vLLM server on http://127.0.0.1:8100",
]

TOO_LITTLE_MEMORY = """\
(EngineCore pid=2) ERROR 11-23 22:45:01 [core.py:1280]   File "core.py", line 1251, in run_engine_core
(EngineCore pid=2) ERROR 11-23 22:45:01 [core.py:1280] ValueError: Available memory on node 0 (20.08/23.46 GiB) on kv \
cache allocation is less than requested memory for kv (100.0 GiB). Decrease --kv-cache-memory-bytes.
(EngineCore pid=2) Traceback (most recent call last):
(EngineCore pid=2) ValueError: Available memory on node 0 (20.08/23.46 GiB) on kv cache allocation is less than \
requested memory for kv (100.0 GiB). Decrease --kv-cache-memory-bytes.
  File "utils.py", line 1431, in wait_for_engine_startup
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects
"""

TOO_LONG_CONTEXT = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len (8192).
    For further information visit the documentation
"""

UNKNOWN_FLAG = """\
                     [model_tag]
api_server.py: error: unrecognized arguments: --no-such
"""


def test_a_start_goes_through_its_phases_in_order() -> None:
    assert [phase("\n".join(START[:lines])) for lines in range(len(START) + 1)] == [
        "importing its code",
        "reading the model's configuration",
        "starting the engine process",
        "loading weights",
        "warming up",
        "opening the HTTP server",
    ]


def test_the_cause_is_named_once_and_its_consequence_is_not() -> None:
    (error,) = errors(TOO_LITTLE_MEMORY)
    assert error.startswith("ValueError: Available memory on node 0")


@pytest.mark.parametrize(
    ("log", "remedy"),
    [
        (TOO_LITTLE_MEMORY, "Free memory"),
        (TOO_LONG_CONTEXT, "Pass a smaller --max-model-len"),
        (UNKNOWN_FLAG, "Correct the setting engine_args"),
        ("OSError: [Errno 98] Address already in use", "set engine_port"),
        ("OSError: [Errno 28] No space left on device", "Free disk space"),
        ("OSError: x/y is not a local folder and is not a valid model identifier", "Correct the setting model"),
    ],
)
def test_every_known_failure_has_its_remedy(log: str, remedy: str) -> None:
    assert remedy in explain(log)[0]


def test_where_no_error_is_named_the_last_lines_are_shown() -> None:
    remedy, lines = explain("\n".join(START), tail_lines=2)
    assert remedy == "The whole log says more."
    assert lines.splitlines() == START[-2:]


def test_a_very_long_error_is_cut() -> None:
    assert len(errors("ValueError: " + "x" * 10_000)[0]) == 400


def test_an_empty_log_is_no_error() -> None:
    assert explain("") == ("The whole log says more.", "")
