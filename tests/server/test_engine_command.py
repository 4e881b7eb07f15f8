"""What vLLM is started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine_command import EngineCommand


@pytest.fixture
def on_cpu(tmp_path: Path) -> EngineCommand:
    return EngineCommand(
        model=str(tmp_path),
        served_name="SmolLM2-135M-Instruct",
        port=8123,
        gpu=False,
        built_in=True,
        cache_dir=tmp_path,
    )


@pytest.fixture
def on_gpu(on_cpu: EngineCommand) -> EngineCommand:
    return replace(on_cpu, gpu=True)


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_it_listens_on_loopback_only_at_the_port_that_was_chosen(on_cpu: EngineCommand) -> None:
    assert value(on_cpu.arguments(), "--host") == "127.0.0.1"
    assert value(on_cpu.arguments(), "--port") == "8123"


def test_flags_for_cpus_are_given_on_a_cpu_and_dropped_on_a_gpu(on_cpu: EngineCommand, on_gpu: EngineCommand) -> None:
    assert {"--enforce-eager", "--block-size", "--no-enable-chunked-prefill"} <= set(on_cpu.arguments())
    assert not {"--enforce-eager", "--block-size", "--no-enable-chunked-prefill"} & set(on_gpu.arguments())
    assert "VLLM_CPU_KVCACHE_SPACE" in on_cpu.environment({}, "key")
    assert "VLLM_CPU_KVCACHE_SPACE" not in on_gpu.environment({}, "key")


def test_flags_for_gpus_are_given_on_a_gpu_alone(on_cpu: EngineCommand, on_gpu: EngineCommand) -> None:
    assert "--gpu-memory-utilization" in on_gpu.arguments()
    assert "--gpu-memory-utilization" not in on_cpu.arguments()


def test_a_model_of_the_users_own_keeps_its_own_context_and_tool_parser(on_cpu: EngineCommand) -> None:
    arguments = replace(on_cpu, built_in=False).arguments()
    assert not {"--max-model-len", "--tool-call-parser"} & set(arguments)


def test_arguments_of_the_user_come_last_so_that_they_win(on_cpu: EngineCommand) -> None:
    arguments = replace(on_cpu, extra=("--max-model-len", "1024")).arguments()
    assert arguments[-2:] == ["--max-model-len", "1024"]


def test_the_api_key_is_in_the_environment_and_not_in_the_arguments(on_cpu: EngineCommand) -> None:
    assert on_cpu.environment({}, "the-key")["VLLM_API_KEY"] == "the-key"
    assert "--api-key" not in on_cpu.arguments()


def test_our_own_settings_and_secrets_do_not_reach_vllm(on_cpu: EngineCommand) -> None:
    environment = on_cpu.environment({"PREAMBLE_SECRET": "s" * 32, "PATH": "/usr/bin"}, "key")
    assert "PREAMBLE_SECRET" not in environment
    assert environment["PATH"] == "/usr/bin"


def test_the_users_choice_of_cache_space_is_kept(on_cpu: EngineCommand) -> None:
    assert on_cpu.environment({"VLLM_CPU_KVCACHE_SPACE": "7"}, "key")["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_a_directory_is_loaded_offline_and_a_hub_name_is_not(on_cpu: EngineCommand) -> None:
    assert on_cpu.environment({}, "key")["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in replace(on_cpu, model="some/model").environment({}, "key")


def test_nothing_is_reported_to_anybody(on_cpu: EngineCommand) -> None:
    environment = on_cpu.environment({}, "key")
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
