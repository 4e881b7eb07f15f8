"""The policy's fields: the twin of the core's policy, its text forms, where a request's policy comes from."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.annealing import Annealing
from adaptive.policy import Checkpoint, Mode, Policy, SelectorName
from server.errors import BadRequest
from server.policy import PolicyFields, build, read_alias, read_fields, resolve
from server.sampling_plan import PassThrough, plan
from server.settings import Settings, SettingsError, load_settings, load_settings_with_sources
from server.settings_text import render_settings

OFF = PolicyFields(mode=Mode.OFF)


def test_the_fields_and_their_defaults_are_those_of_the_core() -> None:
    assert list(PolicyFields.model_fields) == [field.name for field in fields(Policy)]
    assert build(PolicyFields().model_dump()) == Policy()


def test_openapi_describes_every_field() -> None:
    properties = PolicyFields.model_json_schema()["properties"]
    assert not [name for name, schema in properties.items() if not schema.get("description")]


@pytest.mark.parametrize(
    "text",
    ["mode=best_of_n,n_max=3", " mode = best_of_n , n_max=3,", '{"mode": "best_of_n", "n_max": 3}'],
)
def test_a_header_is_pairs_or_json(text: str) -> None:
    assert read_fields(text, "x-preamble-policy").said() == {"mode": Mode.BEST_OF_N, "n_max": 3}


def test_nested_fields_become_the_cores_records() -> None:
    given_fields = {"annealing": {"start": 0.5}, "checkpoints": [{"tokens": 8, "keep": 0.25}]}
    policy = resolve(OFF, ("preamble", read_fields(given_fields, "preamble")))
    assert policy.annealing == Annealing(start=0.5)
    assert policy.checkpoints == (Checkpoint(8, 0.25),)
    assert policy.mode is Mode.ADAPTIVE


@given(
    st.one_of(
        st.text(max_size=40), st.dictionaries(st.text(max_size=8), st.integers() | st.none() | st.text(max_size=5))
    )
)
def test_whatever_is_sent_is_a_policy_or_a_named_error(value: Any) -> None:
    param = "preamble"
    try:
        resolve(OFF, ("preamble", read_fields(value, "preamble")))
    except BadRequest as error:
        param = error.param or ""
    assert param.startswith("preamble")


def test_fields_that_do_not_go_together_are_named_by_the_source_that_gives_the_wrong_one() -> None:
    whole = ("x-preamble-policy", read_fields("streaming=whole", "x-preamble-policy"))
    with pytest.raises(BadRequest) as raised:
        resolve(OFF, ("preamble", PolicyFields(commit_at=9)), whole)
    assert raised.value.param == "preamble.commit_at"


def test_a_field_of_a_nearer_source_hides_the_farther_and_leaves_the_rest() -> None:
    policy = resolve(
        PolicyFields(mode=Mode.ADAPTIVE, threshold=0.5, token_budget=9),
        ("preamble", PolicyFields(token_budget=None)),
        ("model", PolicyFields(mode=Mode.BEST_OF_N, n_max=3)),
    )
    assert (policy.mode, policy.n_max, policy.threshold, policy.token_budget) == (Mode.BEST_OF_N, 3, 0.5, None)


@pytest.mark.parametrize("name", ["m", "m:latest", "m:best-of-0", "m:best-of-", ":adaptive", "adaptive", None, 3])
def test_other_names_are_no_aliases(name: object) -> None:
    assert read_alias(name) is None


def test_an_alias_of_too_many_is_a_400_on_the_model() -> None:
    with pytest.raises(BadRequest) as raised:
        read_alias("m:best-of-99")
    assert raised.value.param == "model"


def test_a_model_that_the_upstream_serves_is_never_taken_for_an_alias() -> None:
    body: dict[str, Any] = {"model": "m:adaptive", "messages": []}
    assert plan(body, None, OFF, ("m:adaptive",)).reason is PassThrough.OFF
    assert body["model"] == "m:adaptive"
    assert plan(body, None, OFF, ("m",)).reason is None
    assert body["model"] == "m"


def test_several_choices_are_something_to_gain_even_of_a_single_candidate_policy() -> None:
    body: dict[str, Any] = {"model": "m", "messages": [], "n": 2, "preamble": {"n_max": 1}}
    planned = plan(body, None, OFF, ("m",))
    assert (planned.reason, planned.choices) == (None, 2)


@pytest.mark.parametrize(("sent", "header", "param"), [(True, None, "preamble"), (False, "", "x-preamble-policy")])
def test_the_selector_of_a_reward_model_is_refused_where_there_is_none(
    sent: bool, header: str | None, param: str
) -> None:
    def body() -> dict[str, Any]:
        return {"model": "m", "messages": []} | ({"preamble": {"selector": "reward_model"}} if sent else {})

    text = None if header is None else "selector=reward_model"
    with pytest.raises(BadRequest, match="reward_upstream") as raised:
        plan(body(), text, OFF, ("m",))
    assert raised.value.param == f"{param}.selector"
    assert plan(body(), text, OFF, ("m",), reward_model=True).policy.selector is SelectorName.REWARD_MODEL


def test_the_servers_default_is_off_until_it_has_a_mode_and_survives_being_printed(tmp_path: Path) -> None:
    config = tmp_path / "preamble.toml"
    config.write_text('[policy]\nmode = "adaptive"\ncheckpoints = [{tokens = 8, keep = 0.5}]\n')
    loaded = load_settings_with_sources(config=config, environ={})
    assert loaded.settings.policy.mode is Mode.ADAPTIVE
    assert Settings.model_validate(tomllib.loads(render_settings(loaded))).policy == loaded.settings.policy
    config.write_text("")
    given_fields = load_settings(config=config, environ={"PREAMBLE_POLICY": "n_max=4"}).policy
    assert (given_fields.mode, given_fields.n_max) == (Mode.OFF, 4)


@pytest.mark.parametrize(
    ("text", "named"),
    [("n_max=0", "policy.n_max"), ("mode=adaptive,commit_at=3,streaming=whole", "commit_at"), ("mode", "policy")],
)
def test_a_wrong_default_policy_stops_the_start_and_is_named(tmp_path: Path, text: str, named: str) -> None:
    config = tmp_path / "preamble.toml"
    config.touch()
    with pytest.raises(SettingsError, match=named):
        load_settings(config=config, environ={"PREAMBLE_POLICY": text})
