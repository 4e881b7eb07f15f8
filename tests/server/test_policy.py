"""The policy's fields: the twin of the core's policy, its text forms, where a request's policy comes from."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive.annealing import Annealing
from adaptive.policy import AtDeadline, Checkpoint, Mode, Policy, ScorerName, SelectorName
from server.errors import BadRequest
from server.policy import PolicyFields, build, from_content, read_alias, read_fields, resolve, to_content
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


# Fields of which any value goes with any other, so that only where each comes from matters.
_FREE: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(Mode),
    "n_max": st.integers(1, 64),
    "threshold": st.floats(0, 1),
    "batch_growth": st.floats(1.5, 16),
    "annealing": st.fixed_dictionaries({}, optional={"start": st.floats(0, 2), "rate": st.floats(0, 1)}),
    "checkpoints": st.just([]) | st.just([{"tokens": 8, "keep": 0.5}]),
    "token_budget": st.none() | st.integers(1, 1000),
    "deadline_ms": st.none() | st.integers(1, 1000),
    "at_deadline": st.sampled_from(AtDeadline),
    "scorer": st.sampled_from(ScorerName),
    "selector": st.sampled_from([SelectorName.SELF_EVALUATION, SelectorName.FIRST]),
    "commit_at": st.none() | st.integers(1, 1000),
}
_SAID = st.fixed_dictionaries({}, optional=_FREE)


@given(_SAID, _SAID, st.sampled_from([None, "adaptive", "best-of-4"]), _SAID, _SAID)
def test_for_every_field_the_first_source_that_says_it_wins(
    body: dict[str, Any], header: dict[str, Any], alias: str | None, own: dict[str, Any], default: dict[str, Any]
) -> None:
    request: dict[str, Any] = {"model": "m" if alias is None else f"m:{alias}", "messages": [], "preamble": body}
    server = PolicyFields.model_validate({"mode": Mode.OFF} | default)
    policy = plan(request, orjson.dumps(header).decode(), server, ("m",), PolicyFields.model_validate(own)).policy
    of_alias = {None: {}, "adaptive": {"mode": "adaptive"}, "best-of-4": {"mode": "best_of_n", "n_max": 4}}[alias]
    sources = [PolicyFields.model_validate(each).said() for each in (body, header, of_alias, own)]
    sources.append(server.said())
    for name in PolicyFields.model_fields:
        if name != "mode":
            first = next(({name: each[name]} for each in sources if name in each), {})
            assert getattr(policy, name) == getattr(build(first), name)
    # A source that says something and no mode wants it used: where all after it are off, it means adaptive.
    mode = server.said()["mode"]
    for said in reversed(sources[:-1]):
        mode = said.get("mode", Mode.ADAPTIVE if said and mode is Mode.OFF else mode)
    assert policy.mode is mode


def test_the_users_default_stands_between_the_request_and_the_servers_default() -> None:
    best_of_3 = PolicyFields(mode=Mode.BEST_OF_N, n_max=3)
    plain: dict[str, Any] = {"model": "m", "messages": []}
    off = plan(dict(plain), None, best_of_3, ("m",), OFF)
    assert off.reason is PassThrough.OFF
    asked = plan(plain | {"preamble": {"mode": "adaptive"}}, None, best_of_3, ("m",), OFF)
    assert (asked.reason, asked.policy.mode, asked.policy.n_max) == (None, Mode.ADAPTIVE, 3)
    without_a_mode = plan(dict(plain), None, OFF, ("m",), PolicyFields(n_max=5))
    assert (without_a_mode.policy.mode, without_a_mode.policy.n_max) == (Mode.ADAPTIVE, 5)


def test_a_combination_that_the_users_default_makes_wrong_is_named_with_it() -> None:
    request: dict[str, Any] = {"model": "m", "messages": [], "preamble": {"n_max": 2}}
    with pytest.raises(BadRequest) as raised:
        plan(request, None, OFF, ("m",), PolicyFields(selector=SelectorName.MAJORITY))
    assert raised.value.param == "policy.selector"


def test_a_combination_that_the_servers_default_makes_wrong_is_named_with_the_nearest_source() -> None:
    majority = PolicyFields(mode=Mode.OFF, selector=SelectorName.MAJORITY, answer_regex="x")
    with pytest.raises(BadRequest) as raised:
        resolve(majority, ("preamble", PolicyFields()), ("policy", PolicyFields(answer_json_path="$.x")))
    assert raised.value.param == "policy.selector"


@given(_SAID)
def test_what_the_store_keeps_is_what_was_said_and_nothing_else(said: dict[str, Any]) -> None:
    fields = PolicyFields.model_validate(said)
    kept = from_content(to_content(fields))
    assert kept.said() == fields.said()
    assert kept.said().keys() == said.keys()


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
