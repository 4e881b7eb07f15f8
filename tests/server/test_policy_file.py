"""A policy file: read, written, set as the server's default, and followed by a running proxy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from adaptive.annealing import CONSTANT
from adaptive.policy import Checkpoint, Mode, Policy, ScorerName
from server.checks import Status
from server.doctor_local import tell_policy
from server.policy import build
from server.policy_file import PolicyFileError, read_policy_file, write_policy_file
from server.settings import Settings, SettingsError, load_settings, load_settings_with_sources
from server.settings_text import render_settings
from tests.server.running import running_proxy
from tests.server.sampling_upstream import MODEL, Reply, SamplingUpstream

FOUND = Policy(
    mode=Mode.ADAPTIVE,
    n_max=6,
    threshold=0.61,
    annealing=CONSTANT,
    checkpoints=(Checkpoint(32, 0.25),),
    scorer=ScorerName.MEAN_LOG_PROBABILITY,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "found" / "policy.json"
    write_policy_file(path, FOUND, {"target": {"gain": 0.75}})
    return path


def test_what_was_written_is_read_back_as_the_same_policy(file: Path) -> None:
    read = read_policy_file(file)
    assert build(read.fields.said()) == FOUND
    assert read.about == {"target": {"gain": 0.75}}
    best_of_n = replace(FOUND, mode=Mode.BEST_OF_N, checkpoints=())
    write_policy_file(file, best_of_n, {})
    assert build(read_policy_file(file).fields.said()) == best_of_n


def test_a_file_by_hand_needs_no_about_and_not_all_fields(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"n_max": 4}')
    read = read_policy_file(tmp_path / "own.json")
    assert (read.fields.said(), read.about) == ({"n_max": 4}, {})
    # As with the setting policy: without a mode it holds for whoever asks for sampling.
    assert load_settings(environ={}, policy_file=tmp_path / "own.json").policy.said() == {"mode": "off", "n_max": 4}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is not JSON"]),
        ("[1]", ["must be a JSON object such as"]),
        ('{"n_max": 0}', ["'n_max'", "greater than or equal to 1", "correct it there"]),
        ('{"treshold": 0.5}', ["'treshold'", "no field of a policy", "threshold"]),
        ('{"checkpoints": [{"tokens": 8, "keep": 2}]}', ["'checkpoints[0].keep'"]),
        (
            '{"checkpoints": [{"tokens": 8, "keep": 0.5}, {"tokens": 4, "keep": 0.5}]}',
            ["'checkpoints[1].tokens'", "give more than 8"],
        ),
        ('{"about": "by hand"}', ["'about'", "JSON object"]),
        ('{"threshold": NaN}', ["is not JSON"]),
        (" " * (2 << 20), ["larger than"]),
    ],
)
def test_a_wrong_file_is_told_with_its_name_field_and_remedy(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(PolicyFileError) as caught:
        read_policy_file(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    with pytest.raises(SettingsError, match=r"^policy_file \(from PREAMBLE_POLICY_FILE\): ") as wrong:
        load_settings(environ={"PREAMBLE_POLICY_FILE": str(path)})
    assert str(path) in str(wrong.value)


def test_a_file_that_is_not_there_is_one_line_and_hides_no_other_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={"PREAMBLE_PORT": "-1"}, policy_file=str(tmp_path / "none.json"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("port (from PREAMBLE_PORT)")
    assert lines[1].startswith("policy_file (from --policy-file): ")
    assert "none.json cannot be read (No such file or directory); give an existing file" in lines[1]


def test_the_default_policy_has_one_source_and_both_are_named(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "preamble.toml"
    config.write_text("[policy]\nn_max = 3\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(config=config, environ={"PREAMBLE_POLICY_FILE": str(file)})
    assert str(caught.value) == (
        f"policy_file (from PREAMBLE_POLICY_FILE): the setting policy (in {config}) says the server's default policy "
        "too; leave one of the two out"
    )


def test_a_file_that_selects_by_a_reward_model_needs_one(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"mode": "adaptive", "selector": "reward_model"}')
    with pytest.raises(SettingsError, match=r"^policy_file \(from --policy-file\): the selector"):
        load_settings(environ={}, policy_file=tmp_path / "policy.json")


def test_printed_settings_show_the_policy_of_the_file_and_read_back_as_the_same(file: Path, tmp_path: Path) -> None:
    loaded = load_settings_with_sources(environ={}, policy_file=str(file))
    assert build(loaded.settings.policy.said()) == FOUND
    printed = render_settings(loaded)
    assert f'\npolicy_file = "{file}"  # from --policy-file\n' in printed
    assert "\n# policy = {" in printed
    assert f"  # in {file}\n" in printed
    config = tmp_path / "printed.toml"
    config.write_text(printed)
    assert load_settings(config=config, environ={}) == loaded.settings


def test_doctor_says_where_the_default_is_from(file: Path) -> None:
    def told(**values: object) -> str:
        check = tell_policy(Settings.model_validate(values))
        assert check.status is Status.OK
        return check.message

    assert f"From {file} (policy_file): mode=adaptive, n_max=6" in told(policy_file=file)
    assert told(policy="mode=best_of_n, n_max=2") == "From the setting policy: mode=best_of_n, n_max=2."
    assert told().startswith("Off: neither policy nor policy_file is set")


async def test_a_proxy_follows_the_file_and_says_that_it_does(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"mode": "best_of_n", "n_max": 3, "checkpoints": [], "about": {"by": "a test"}}))
    chat: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "temperature": 0.8}
    upstream = SamplingUpstream([Reply("one"), Reply("two"), Reply("three")])
    async with upstream.serving(), running_proxy(upstream.url, tmp_path, policy_file=str(path)) as proxy:
        alice = httpx.AsyncClient(base_url=proxy.url, headers=await proxy.make_key("alice"), timeout=10)
        async with alice:
            answer = await alice.post("/v1/chat/completions", json=chat)
            assert answer.status_code == 200, answer.text
            assert len(upstream.chats) == 3
            put = await alice.put("/v1/policy", json={"threshold": 0.5})
            assert put.json()["default_from"] == "policy_file (policy.json)"
            effective = (await alice.get("/v1/policy")).json()["effective"]
            assert (effective["mode"], effective["n_max"], effective["threshold"]) == ("best_of_n", 3, 0.5)
            assert str(tmp_path) not in put.text
