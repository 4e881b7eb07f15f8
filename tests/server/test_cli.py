"""The command `preamble`, as somebody types it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server import __version__
from server.cli import run
from server.store import Store


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did: exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs commands in this process on a store of the test's own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], data_dir: Path) -> None:
        self._capsys = capsys
        self.data_dir = data_dir

    def __call__(self, *arguments: str) -> Result:
        self._capsys.readouterr()
        status = run(arguments)
        out, err = self._capsys.readouterr()
        return Result(status, out, err)

    def on_store(self, *arguments: str) -> Result:
        """Run a command that takes --data-dir."""
        return self(*arguments, "--data-dir", str(self.data_dir))

    def store(self) -> Store:
        return Store.open(f"sqlite:///{self.data_dir / 'preamble.db'}")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Return a shell in an empty directory without settings in its environment."""
    for name in os.environ:
        if name.startswith("PREAMBLE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(capsys, tmp_path / "data")


def test_the_version_is_printed(shell: Shell) -> None:
    assert shell("--version") == Result(0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("serve",),
        ("engine",),
        ("demo",),
        ("doctor",),
        ("eval",),
        ("keys", "create"),
        ("keys", "list"),
        ("keys", "revoke"),
        ("constitution", "show"),
        ("constitution", "set"),
        ("constitution", "import"),
        ("constitution", "export"),
        ("policy", "show"),
        ("policy", "set"),
        ("policy", "clear"),
    ],
)
def test_every_command_explains_itself(shell: Shell, command: Sequence[str]) -> None:
    result = shell(*command, "--help")
    assert result.status == 0
    assert f"preamble {' '.join(command)}".strip() in result.out
    assert result.out.count("\n") > 8


def test_an_unknown_command_or_option_is_a_wrong_use(shell: Shell) -> None:
    assert shell("serv").status == 2
    assert shell("serve", "--prot", "1").status == 2


# Settings


@pytest.mark.parametrize("command", ["serve", "demo", "engine"])
def test_a_wrong_setting_stops_the_start_with_its_name_and_the_remedy(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PREAMBLE_SYSTEM_ROLL", "auto")
    monkeypatch.setenv("PREAMBLE_WORKERS", "many")
    result = shell(command)
    assert (result.status, result.out) == (2, "")
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert any(
        "system_roll (from PREAMBLE_SYSTEM_ROLL)" in line and "did you mean system_role?" in line for line in lines
    )
    assert any("workers (from PREAMBLE_WORKERS): should be a valid integer" in line for line in lines)


def test_a_wrong_self_evaluation_file_that_is_set_stops_the_start(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "preamble_self_evaluation.json"
    file.write_text('{"format": 1, "question": "", "win_or_tie": "No", "loss": "Yes"}')
    monkeypatch.setenv("PREAMBLE_SELF_EVALUATION", str(tmp_path))
    result = shell.on_store("serve", "--upstream", "http://127.0.0.1:9", "--port", "0")
    assert (result.status, result.out) == (2, "")
    assert result.err.replace("\n", "") == f"self_evaluation: {file}: question must be the text of the question."


def test_options_are_checked_like_settings(shell: Shell) -> None:
    result = shell("serve", "--port", "eighty", "--auth", "off", "--host", "0.0.0.0")  # noqa: S104 -- nothing is bound
    assert result.status == 2
    assert "port (from --port)" in result.err
    assert "Traceback" not in result.err


def test_the_effective_settings_are_printed_as_toml(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREAMBLE_ADMIN_KEY", "hunter2-hunter2-hunter2")
    result = shell("serve", "--print-settings", "--port", "81", "--no-access-log", "--engine-args", "--seed 1")
    assert result.status == 0
    printed = tomllib.loads(result.out)
    assert (printed["port"], printed["access_log"], printed["engine_args"]) == (81, False, ["--seed", "1"])
    assert "hunter2" not in result.out
    assert '# admin_key = "**********"  # from PREAMBLE_ADMIN_KEY' in result.out


def test_the_effective_settings_are_printed_as_json_too(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("workers = 3\n")
    result = shell("serve", "--print-settings", "--json", "--config", str(tmp_path / "own.toml"))
    assert result.json["workers"] == {"value": 3, "source": f"in {tmp_path / 'own.toml'}"}


# Keys


def test_a_key_is_shown_once_and_only_its_description_after(shell: Shell) -> None:
    created = shell.on_store("keys", "create", "--user", "alice", "--label", "[for] tests")
    token = created.out.strip()
    assert created.status == 0
    assert token.startswith("pre_")
    assert "cannot be shown again" in created.err
    listed = shell.on_store("keys", "list")
    assert "alice" in listed.out
    assert "[for] tests" in listed.out
    assert token.rpartition("_")[2] not in listed.out


def test_a_key_can_be_made_for_programs(shell: Shell) -> None:
    created = shell.on_store("keys", "create", "--user", "bob", "--may-name-sub-users", "--json").json
    assert created["key"].startswith("pre_" + created["id"])
    assert (created["user"], created["admin"], created["may_name_sub_users"]) == ("bob", False, True)
    [listed] = shell.on_store("keys", "list", "--json").json
    assert listed == {name: value for name, value in created.items() if name != "key"}


def test_an_admin_key_needs_no_user_and_any_other_does(shell: Shell) -> None:
    assert shell.on_store("keys", "create", "--admin", "--json").json["admin"] is True
    refused = shell.on_store("keys", "create")
    assert refused.status == 1
    assert "--user alice" in refused.err
    assert refused.out == ""


def test_a_revoked_key_is_marked_and_can_be_left_out(shell: Shell) -> None:
    key_id = shell.on_store("keys", "create", "--user", "eve", "--json").json["id"]
    revoked = shell.on_store("keys", "revoke", key_id)
    assert (revoked.status, revoked.out) == (0, f"Revoked {key_id} of user eve.\n")
    assert shell.on_store("keys", "list", "--json").json[0]["revoked_at"] is not None
    assert shell.on_store("keys", "list", "--live", "--json").json == []


def test_revoking_an_unknown_key_fails_with_the_remedy(shell: Shell) -> None:
    result = shell.on_store("keys", "revoke", "nope")
    assert result.status == 1
    assert "List them" in result.err


def test_a_store_that_cannot_be_opened_is_one_line_and_no_traceback(shell: Shell) -> None:
    shell.data_dir.write_text("a file where a directory should be")
    result = shell.on_store("keys", "list")
    assert result.status == 1
    assert "The store cannot be opened" in result.err
    assert "Traceback" not in result.err


# Constitutions


def test_principles_given_as_arguments_become_the_constitution(shell: Shell) -> None:
    made = shell.on_store("constitution", "set", "Be brief.", "Be kind.", "--user", "alice")
    assert made.status == 0
    assert "@1 of alice is now active: 2 principle(s)." in made.out
    shown = shell.on_store("constitution", "show", "--user", "alice")
    assert "1. Be brief.\n2. Be kind.\n" in shown.out
    with shell.store() as store:
        assert [principle.text for principle in store.active("alice").constitution.principles] == [
            "Be brief.",
            "Be kind.",
        ]


def test_setting_the_same_principles_again_makes_no_new_version(shell: Shell) -> None:
    assert shell.on_store("constitution", "set", "Be brief.", "--json").json["created"] is True
    again = shell.on_store("constitution", "set", "Be brief.", "--json").json
    assert (again["created"], again["version"]) == (False, 1)


def test_without_a_user_it_is_the_one_whom_a_loopback_proxy_assumes(shell: Shell) -> None:
    assert shell.on_store("constitution", "set", "Be brief.", "--json").json["user"] == "default"


def test_an_older_version_can_be_shown(shell: Shell) -> None:
    shell.on_store("constitution", "set", "First.")
    shell.on_store("constitution", "set", "Second.")
    old = shell.on_store("constitution", "show", "--version", "1", "--json").json
    assert (old["version"], old["active"], old["principles"]) == (1, False, [{"text": "First."}])
    assert "1. First." in old["block"]


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml", "md", "markdown"])
def test_what_is_exported_can_be_imported_again(shell: Shell, tmp_path: Path, suffix: str) -> None:
    shell.on_store("constitution", "set", "Be brief.", "Say 'sorry' never.")
    file = tmp_path / f"own.{suffix}"
    assert shell.on_store("constitution", "export", str(file)).status == 0
    imported = shell.on_store("constitution", "import", str(file), "--user", "other", "--json").json
    assert imported["principles"] == [{"text": "Be brief."}, {"text": "Say 'sorry' never."}]


def test_standard_output_and_input_work_like_files(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.on_store("constitution", "set", "Be brief.")
    exported = shell.on_store("constitution", "export", "--format", "markdown").out
    assert "1. Be brief." in exported
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(exported.encode())))
    imported = shell.on_store("constitution", "import", "-", "--format", "markdown", "--user", "other", "--json")
    assert imported.json["principles"] == [{"text": "Be brief."}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("own.json", '{"principles": ["a", ""]}', "own.json: principles[1].text is empty"),
        ("own.yaml", "principles: [", "own.yaml: "),
        ("own.txt", "Be brief.", "--format json, yaml or markdown"),
        ("missing.yaml", None, "Cannot read"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_reason(
    shell: Shell, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    result = shell.on_store("constitution", "import", name)
    assert result.status == 1
    assert said in result.err
    assert "Traceback" not in result.err
    with shell.store() as store:
        assert store.find_active("default") is None


def test_limits_are_those_of_the_settings(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREAMBLE_MAX_PRINCIPLES", "1")
    result = shell.on_store("constitution", "set", "One.", "Two.")
    assert result.status == 1
    assert "more than 1" in result.err


def test_a_user_without_a_constitution_is_told_how_to_get_one(shell: Shell) -> None:
    for command in ("show", "export"):
        result = shell.on_store("constitution", command, "--user", "alice")
        assert (result.status, result.out) == (1, "")
        assert "preamble constitution set --user alice" in result.err


def test_a_file_that_cannot_be_written_is_named(shell: Shell, tmp_path: Path) -> None:
    shell.on_store("constitution", "set", "Be brief.")
    result = shell.on_store("constitution", "export", str(tmp_path / "no" / "such.json"))
    assert result.status == 1
    assert "Cannot write" in result.err


# Policies


def test_a_policy_that_was_set_is_shown_with_what_it_comes_to(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREAMBLE_POLICY", "threshold=0.7")
    made = shell.on_store("policy", "set", "mode=adaptive, n_max=4", "--user", "alice")
    assert made.status == 0
    assert "@1 of alice holds now: mode=adaptive, n_max=4" in made.out
    shown = shell.on_store("policy", "show", "--user", "alice").out
    assert "  n_max = 4\n" in shown
    assert "  threshold = 0.7\n" in shown
    plain = shell.on_store("policy", "show", "--user", "alice", "--json").json
    assert plain["said"] == {"mode": "adaptive", "n_max": 4}
    assert (plain["effective"]["mode"], plain["effective"]["threshold"]) == ("adaptive", 0.7)
    with shell.store() as store:
        assert store.policy("alice").content == '{"mode":"adaptive","n_max":4}'


def test_a_policy_may_be_json_and_the_same_again_is_no_change(shell: Shell) -> None:
    fields = '{"checkpoints": [{"tokens": 8, "keep": 0.5}]}'
    made = shell.on_store("policy", "set", fields, "--json").json
    assert (made["user"], made["said"], made["changed"]) == ("default", json.loads(fields), True)
    again = shell.on_store("policy", "set", fields, "--json").json
    assert (again["changed"], again["version"]) == (False, 1)


def test_a_policy_that_was_cleared_is_gone_and_the_remedy_is_named(shell: Shell) -> None:
    shell.on_store("policy", "set", "mode=off")
    assert shell.on_store("policy", "clear", "--json").json == {"user": "default", "deleted": True}
    shown = shell.on_store("policy", "show")
    assert (shown.status, shown.out) == (1, "")
    assert "preamble policy set --user default" in shown.err
    assert shell.on_store("policy", "clear").status == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [("n_max=0", "'n_max'"), ("nmax=3", "'nmax'"), ("selector=majority", "'selector'"), ("often", "'often'")],
)
def test_a_wrong_field_of_a_policy_is_named_and_nothing_is_stored(shell: Shell, fields: str, named: str) -> None:
    refused = shell.on_store("policy", "set", fields)
    assert (refused.status, refused.out) == (1, "")
    assert named in refused.err
    assert "Traceback" not in refused.err
    with shell.store() as store:
        assert store.policies() == ()


# As a process


def test_the_command_line_loads_nothing_that_a_worker_must_load_itself() -> None:
    """prometheus-client decides at its import whether there are several workers; torch takes seconds."""
    code = "import sys, server.cli; print({'prometheus_client', 'torch', 'transformers', 'openai'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"


def test_it_runs_as_a_module_too() -> None:
    command = [sys.executable, "-m", "server", "serve", "--port", "-1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("port (from --port): should be greater than or equal to 0")
