"""Settings come from where they should, wrong ones are named, secrets stay hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from server.settings import MASK, LoadedSettings, Settings, SettingsError, load_settings, load_settings_with_sources
from server.settings_text import render_settings, settings_as_json


def explain(**environ: str) -> str:
    """Return what is said about wrong environment variables, named without their prefix."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={f"PREAMBLE_{name}": value for name, value in environ.items()})
    return str(caught.value)


def test_an_option_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("port = 1\nworkers = 2\nhost = '127.0.0.3'\n")
    loaded = load_settings_with_sources(
        config=config, environ={"PREAMBLE_PORT": "4", "PREAMBLE_WORKERS": "5"}, port=6, host=None
    )
    assert (loaded.settings.port, loaded.settings.workers, loaded.settings.host) == (6, 5, "127.0.0.3")
    assert loaded.sources == {"port": "from --port", "workers": "from PREAMBLE_WORKERS", "host": f"in {config}"}


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text("port = 17\n")
    assert load_settings(environ={"PREAMBLE_CONFIG": str(config)}).port == 17


def test_preamble_toml_in_the_working_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "preamble.toml").write_text("port = 18\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).port == 18


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load_settings(environ={"PREAMBLE_UPSTREAM": "", "PREAMBLE_PORT": ""}).upstream is None


def test_engine_arguments_are_split_as_a_shell_does() -> None:
    settings = load_settings(environ={"PREAMBLE_ENGINE_ARGS": "--a 1 --b 'two words'"})
    assert settings.engine_args == ("--a", "1", "--b", "two words")
    assert "engine_args (from PREAMBLE_ENGINE_ARGS): No closing quotation" in explain(ENGINE_ARGS="--a 'open")


def test_every_wrong_setting_has_a_line_with_its_name_source_and_remedy(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("log_level = 'loud'\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(config=config, environ={"PREAMBLE_WORKERS": "0"}, port=70000)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(
        line.startswith(f"log_level (in {config}): should be 'debug', 'info', 'warning' or 'error'") for line in lines
    )
    assert any(
        line.startswith("workers (from PREAMBLE_WORKERS): should be greater than or equal to 1") for line in lines
    )
    assert any(line.startswith("port (from --port): should be less than or equal to 65535") for line in lines)


def test_an_unknown_setting_is_an_error_that_suggests_the_one_meant() -> None:
    assert explain(PROT="1") == "prot (from PREAMBLE_PROT): there is no such setting; did you mean port?"
    assert "--print-settings" in explain(XYZZY="1")


def test_variables_that_kubernetes_makes_are_explained() -> None:
    assert "enableServiceLinks: false" in explain(SERVICE_HOST="10.0.0.1")
    assert "enableServiceLinks: false" in explain(SERVICE_PORT="80")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*missing\.toml: No such file"):
        load_settings(config=tmp_path / "missing.toml", environ={})
    (tmp_path / "broken.toml").write_text("port = \n")
    with pytest.raises(SettingsError, match=r"broken\.toml is not TOML"):
        load_settings(config=tmp_path / "broken.toml", environ={})


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("https://host/prefix/v1", "https://host/prefix"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000"),
    ],
)
def test_the_upstream_is_kept_without_slash_and_v1(given_url: str, kept: str) -> None:
    assert load_settings(environ={}, upstream=given_url).upstream == kept


@pytest.mark.parametrize(
    "wrong", ["127.0.0.1:8000", "ftp://host", "http://", "http://host?a=b", "http://not a host", "http://h:99999"]
)
def test_what_is_no_base_url_is_refused_as_upstream(wrong: str) -> None:
    assert explain(UPSTREAM=wrong).startswith("upstream (from PREAMBLE_UPSTREAM): must be a ")


def test_a_key_inside_the_upstream_url_is_sent_to_its_own_setting() -> None:
    assert "upstream_api_key" in explain(UPSTREAM="http://user:hunter2@host")


def test_a_reward_upstream_is_an_upstream_too_and_needed_by_a_policy_that_selects_by_it() -> None:
    assert load_settings(environ={}, reward_upstream="http://rm:8000/v1/").reward_upstream == "http://rm:8000"
    assert "reward_upstream (from PREAMBLE_REWARD_UPSTREAM): must be a" in explain(REWARD_UPSTREAM="rm:8000")
    assert "reward_upstream_api_key" in explain(REWARD_UPSTREAM="http://user:hunter2@host")
    assert "reward_route" in explain(REWARD_ROUTE="guess")
    assert explain(POLICY="selector=reward_model").startswith("policy (from PREAMBLE_POLICY): the selector")
    given = load_settings(environ={"PREAMBLE_POLICY": "selector=reward_model"}, reward_upstream="http://rm:8000")
    assert given.policy.selector == "reward_model"


@pytest.mark.parametrize(
    ("host", "auth", "required"),
    [
        ("127.0.0.1", "auto", False),
        ("localhost", "auto", False),
        ("::1", "auto", False),
        ("0.0.0.0", "auto", True),  # noqa: S104 -- nothing is bound here
        ("::", "auto", True),
        ("10.1.2.3", "auto", True),
        ("proxy.example", "auto", True),
        ("127.0.0.1", "required", True),
        ("127.0.0.1", "off", False),
    ],
)
def test_keys_are_asked_for_wherever_others_can_reach_the_proxy(host: str, auth: str, required: bool) -> None:
    assert load_settings(environ={}, host=host, auth=auth).auth_required is required


def test_keys_cannot_be_switched_off_where_others_can_reach_the_proxy() -> None:
    said = explain(HOST="0.0.0.0", AUTH="off")  # noqa: S104 -- nothing is bound here
    assert said.startswith("auth (from PREAMBLE_AUTH): 'off' is only allowed on a loopback host")
    assert "preamble keys create" in said


def test_infinite_times_are_refused_because_no_timer_can_hold_them() -> None:
    assert "finite" in explain(STALL_TIMEOUT_S="inf")
    assert explain(STALL_TIMEOUT_S="nan")


def test_secrets_are_long_and_never_quoted_in_errors() -> None:
    said = explain(SECRET="hunter2", ADMIN_KEY="hunter3")
    assert "at least 16 characters" in said
    assert "hunter" not in said


def test_directories_may_begin_with_a_tilde() -> None:
    assert load_settings(environ={}, data_dir="~/x").data_dir == Path.home() / "x"


def test_a_ceiling_that_cannot_be_shared_out_among_the_workers_is_refused_with_the_remedy() -> None:
    for name in ("max_candidates", "max_candidates_per_user"):
        said = explain(WORKERS="4", **{name.upper(): "3"})
        assert said.startswith(f"{name}")
        assert "Raise it to 4" in said
    assert load_settings(environ={}, workers=4, max_candidates=4, max_candidates_per_user=4).workers == 4


def test_the_store_is_a_file_in_the_data_directory_unless_told_otherwise(tmp_path: Path) -> None:
    assert load_settings(environ={}, data_dir=tmp_path).store_url == f"sqlite:///{tmp_path}/preamble.db"
    assert load_settings(environ={}, database_url="sqlite:////x/y.db").store_url == "sqlite:////x/y.db"
    assert "SQLAlchemy URL" in explain(DATABASE_URL="/x/y.db")


SECRETS: dict[str, Any] = {
    "admin_key": "admin-hunter2-hunter2",
    "secret": "secret-hunter2-hunter2",
    "upstream_api_key": "upstream-hunter2",
    "database_url": "postgresql://preamble:pass-hunter2@db/preamble",
    "engine_args": ["--api-key", "args-hunter2", "--hf-token=args-hunter2", "--seed", "1"],
}


def test_secrets_are_masked_wherever_they_stand() -> None:
    loaded = load_settings_with_sources(environ={}, **SECRETS)
    for shown in (render_settings(loaded), str(settings_as_json(loaded)), repr(loaded.settings.masked())):
        assert "hunter2" not in shown
        assert f"preamble:{MASK}@db" in shown
        assert "--seed" in shown


def test_a_masked_secret_is_not_read_back_as_the_secret(tmp_path: Path) -> None:
    config = tmp_path / "printed.toml"
    config.write_text(render_settings(load_settings_with_sources(environ={}, **SECRETS)))
    again = load_settings(config=config, environ={})
    assert (again.admin_key, again.secret, again.database_url, again.engine_args) == (None, None, None, ())


def test_printed_settings_name_their_source_and_meaning() -> None:
    printed = render_settings(load_settings_with_sources(environ={"PREAMBLE_PORT": "9"}, workers=2))
    assert "port = 9  # from PREAMBLE_PORT\n" in printed
    assert "workers = 2  # from --workers\n" in printed
    assert 'host = "127.0.0.1"  # default\n' in printed
    assert "# upstream =  # default\n" in printed
    for name, field in Settings.model_fields.items():
        assert f"{name} = " in printed or f"# {name} =" in printed
        assert field.description
        assert field.description.split()[0] in printed


# A setting that is the mask itself is printed as what a masked one is: as a comment.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: text != MASK)


@given(texts, st.lists(texts, max_size=3), st.integers(1, 64), st.floats(0.001, 1e6), st.booleans())
def test_printed_settings_read_back_as_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory,
    model: str,
    arguments: list[str],
    workers: int,
    timeout_s: float,
    access_log: bool,
) -> None:
    # Passed through the model, not through options, so that even odd texts reach the printing.
    settings = Settings.model_validate(
        {
            "model": model,
            "engine_args": [a for a in arguments if not a.startswith("--")],
            "workers": workers,
            "stall_timeout_s": timeout_s,
            "access_log": access_log,
            "upstream": "http://h:1",
        }
    )
    config = tmp_path_factory.mktemp("printed") / "preamble.toml"
    config.write_text(render_settings(LoadedSettings(settings, {})))
    assert load_settings(config=config, environ={}) == settings


def test_json_has_value_and_source_of_every_setting() -> None:
    shown = settings_as_json(load_settings_with_sources(environ={"PREAMBLE_PORT": "9"}))
    assert shown["port"] == {"value": 9, "source": "from PREAMBLE_PORT"}
    assert shown.keys() == Settings.model_fields.keys()


def test_secrets_do_not_show_in_a_representation() -> None:
    settings = Settings.model_validate({"secret": SecretStr("x" * 16)})
    assert "xxxx" not in repr(settings)
