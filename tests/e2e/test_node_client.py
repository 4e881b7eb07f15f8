"""The openai client for Node talks to a real vLLM through the proxy: `tests/e2e/node/script.mjs`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Vllm
from tests.e2e.running import Preamble, until

pytestmark = pytest.mark.live

FOLDER = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def seen(preamble: Preamble, vllm: Vllm) -> dict[str, Any]:
    """Return what the script saw, run as a user with a constitution; `tag` of that one is under `expectedTag`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed (on Debian: apt-get install nodejs npm)")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        subprocess.run([npm, "ci"], cwd=FOLDER, check=True)
    user = preamble.user()
    tag = user.put_constitution("Speak of apples.")
    environment = os.environ | {"PREAMBLE_TEST_BASE_URL": f"{preamble.base_url}/v1", "PREAMBLE_TEST_API_KEY": user.key}
    run = subprocess.run(
        [node, "script.mjs"], cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    until(lambda: vllm.running_requests() == 0, timeout_s=1, what="vLLM has let go of the aborted stream")
    return {**json.loads(run.stdout), "expectedTag": tag}


def test_it_lists_the_models_of_vllm_and_their_aliases(seen: dict[str, Any], vllm: Vllm) -> None:
    assert seen["models"] == [vllm.model, f"{vllm.model}:adaptive", f"{vllm.model}:best-of-8"]


def test_it_chats_with_the_constitution(seen: dict[str, Any]) -> None:
    assert seen["tag"] == seen["expectedTag"]
    assert seen["content"]
    assert seen["optedOutTag"] is None


def test_it_streams_the_same_words(seen: dict[str, Any]) -> None:
    assert seen["streamedTag"] == seen["expectedTag"]
    assert seen["streamedContent"] == seen["content"]
    assert seen["streamedUsage"] == seen["usage"]


def test_it_aborts_a_stream(seen: dict[str, Any]) -> None:
    assert seen["chunksBeforeAbort"] == 3


def test_it_gets_responses(seen: dict[str, Any]) -> None:
    assert seen["responseText"]


def test_it_recognizes_errors_as_those_of_openai(seen: dict[str, Any]) -> None:
    assert seen["wrongKey"] == {"isKind": True, "status": 401, "code": "invalid_api_key", "hasMessage": True}
    assert seen["wrongModel"]["isKind"]
    assert seen["wrongModel"]["status"] == 404
