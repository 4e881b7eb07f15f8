"""`preamble doctor` finds what is wrong, says what to do about it, and changes nothing."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adaptive.policy import Mode, ScorerName
from server.checks import Check, Report, Status, failed, ok, warning
from server.doctor import examine, print_report
from server.doctor_local import check_keys, check_secret, check_self_evaluation, check_store
from server.doctor_upstream import check_upstream
from server.engine import engine_available
from server.identity import load_or_create_secret
from server.policy import PolicyFields
from server.self_evaluation_config import FILE
from server.settings import Settings, SettingsError
from server.store import Store
from tests.server import scripted_upstream as scripted
from tests.server.scripted_upstream import Answers, ScriptedUpstream, fixed

ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 -- nothing is bound here


def settings_in(directory: Path, **values: object) -> Settings:
    return Settings.model_validate({"data_dir": directory, **values})


def settings_error() -> Settings:
    raise SettingsError("port (from --port): should be a valid integer.\nprot (from PREAMBLE_PROT): no such setting.")


def assert_wrong(check: Check, status: Status, *words: str) -> None:
    """Assert that a check found something, and that it says these words and a remedy."""
    assert check.status is status
    assert check.remedy
    for word in words:
        assert word in f"{check.message} {check.remedy}"


# What lies on this machine


def test_a_store_that_is_not_there_yet_is_fine_and_stays_away(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "data")
    store, disk = check_store(settings)
    assert (store.status, disk.status) == (Status.OK, Status.OK)
    assert check_secret(settings).status is Status.OK
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_can_be_written_is_fine(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    Store.open(settings.store_url).close()
    assert "can be written" in check_store(settings)[0].message


def test_a_directory_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    assert_wrong(check_store(settings_in(tmp_path / "file"))[0], Status.FAILED, "cannot be created", "data_dir")


def test_a_file_that_is_no_store_fails_and_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "preamble.db").write_text("this is not a database, and long enough for SQLite to see that" * 10)
    assert_wrong(check_store(settings_in(tmp_path))[0], Status.FAILED, "cannot be read", "backup")
    assert (tmp_path / "preamble.db").read_text().startswith("this is not")


def test_an_older_store_is_a_warning_and_is_not_migrated(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "preamble.db") as connection:
        connection.execute("CREATE TABLE other (x)")
    settings = settings_in(tmp_path, host=ALL_ADDRESSES)
    assert_wrong(check_store(settings)[0], Status.WARNING, "older", "backup")
    assert_wrong(check_keys(settings, store_usable=False), Status.WARNING, "store")
    with sqlite3.connect(tmp_path / "preamble.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]


def test_a_newer_store_fails(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    Store.open(settings.store_url).close()
    with sqlite3.connect(tmp_path / "preamble.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'rev_9999'")
    assert_wrong(check_store(settings)[0], Status.FAILED, "newer version")


def test_a_database_server_that_does_not_exist_fails(tmp_path: Path) -> None:
    [store] = check_store(settings_in(tmp_path, database_url="oracle://nowhere/db"))
    assert store.status is Status.FAILED
    assert store.remedy


def test_keys_are_not_needed_on_loopback(tmp_path: Path) -> None:
    assert check_keys(settings_in(tmp_path), store_usable=False).status is Status.OK


def test_asking_for_keys_without_any_fails(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, host=ALL_ADDRESSES)
    assert_wrong(check_keys(settings, store_usable=False), Status.FAILED, "preamble keys create --admin")
    with Store.open(settings.store_url) as store:
        key, _ = store.create_key("alice")
        assert check_keys(settings, store_usable=True).message == "Asked for; 1 can be used."
        store.revoke_key(key.id)
    assert check_keys(settings, store_usable=True).status is Status.FAILED


def test_an_admin_key_in_the_settings_is_enough(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, host=ALL_ADDRESSES, admin_key="x" * 16)
    assert check_keys(settings, store_usable=False).status is Status.OK


def test_the_secret_is_found_where_the_proxy_keeps_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert "Will be made" in check_secret(settings).message
    load_or_create_secret(tmp_path)
    assert "Kept in" in check_secret(settings).message
    (tmp_path / "secret").chmod(0o644)
    assert_wrong(check_secret(settings), Status.FAILED, "chmod 600")
    assert check_secret(settings_in(tmp_path, secret="s" * 16)).status is Status.OK


# The upstream


async def checks_of(system_role: str = "auto", **changed: Answers | None) -> dict[str, Check]:
    """Return the checks of a working upstream with some answers changed, by name."""
    routes = scripted.working_routes()
    paths = {path.strip("/").replace("/", "_"): path for path in routes}
    for name, answer in changed.items():
        routes.pop(paths[name])
        if answer is not None:
            routes[paths[name]] = answer
    settings = Settings.model_validate({"upstream": "http://up:1", "system_role": system_role})
    checks = await check_upstream(settings, ScriptedUpstream(routes), nonce="n0nce")
    return {check.name: check for check in checks}


def caching(tokens: int) -> Callable[[Any], tuple[int, Any]]:
    """Return answers that say how many prompt tokens came from the cache."""

    def answer(payload: Any) -> tuple[int, Any]:
        status, value = scripted.complete(payload)
        value["usage"]["prompt_tokens_details"]["cached_tokens"] = tokens
        return status, value

    return answer


async def test_an_upstream_with_everything_on_is_fine_in_every_check() -> None:
    checks = await checks_of(v1_completions=caching(96))
    assert {check.status for check in checks.values()} == {Status.OK}
    assert checks["model"].message == "vLLM 0.32.0 serves tiny (8,192 tokens)."
    assert "reused 96 of" in checks["cache hit"].message
    assert "the literal question: P(win or tie) 0.73" in checks["self-evaluation"].message


async def test_an_upstream_that_is_down_fails_with_the_reason() -> None:
    checks = await checks_of(version=scripted.refused_connection)
    assert_wrong(
        checks["upstream"], Status.FAILED, "http://up:1 does not answer", "ConnectionRefusedError", "--upstream"
    )
    assert list(checks) == ["upstream"]


async def test_a_refused_key_fails_and_names_the_setting() -> None:
    checks = await checks_of(v1_models=fixed(401, None))
    assert_wrong(checks["model"], Status.FAILED, "PREAMBLE_UPSTREAM_API_KEY")


async def test_an_upstream_without_models_fails() -> None:
    assert_wrong((await checks_of(v1_models=fixed(404, None)))["model"], Status.FAILED, "status 404")


async def test_a_template_without_system_role_is_a_warning() -> None:
    template = scripted.tokenize_dropping_system
    assert_wrong((await checks_of(tokenize=template))["system message"], Status.WARNING, "first user message")
    assert_wrong((await checks_of(tokenize=None))["system message"], Status.WARNING, "could not be found out")
    assert (await checks_of("first_user", tokenize=template))["system message"].status is Status.OK


async def test_prefix_caching_that_is_off_or_too_coarse_is_a_warning() -> None:
    off = scripted.cache_config(enabled=False)
    assert_wrong((await checks_of(metrics=off))["prefix caching"], Status.WARNING, "--enable-prefix-caching")
    coarse = scripted.cache_config(block_size=128)
    assert_wrong((await checks_of(metrics=coarse))["prefix caching"], Status.WARNING, "128", "--block-size")
    assert_wrong((await checks_of(metrics=None))["prefix caching"], Status.WARNING, "/metrics")


async def test_a_cache_that_never_hits_is_a_warning() -> None:
    assert_wrong((await checks_of(v1_completions=caching(0)))["cache hit"], Status.WARNING, "reused nothing")


async def test_a_cache_that_cannot_be_seen_is_a_warning() -> None:
    checks = await checks_of(v1_completions=scripted.complete_as_older_vllm)
    assert_wrong(checks["cache hit"], Status.WARNING, "--enable-prompt-tokens-details")


async def test_scoring_that_is_missing_is_a_warning_and_nothing_is_evaluated() -> None:
    older = scripted.complete_as_older_vllm
    checks = await checks_of(v1_completions=older)
    assert_wrong(checks["label scoring"], Status.WARNING, "/generative_scoring")
    assert "self-evaluation" not in checks
    checks = await checks_of(v1_completions=older, generative_scoring=None)
    assert_wrong(checks["label scoring"], Status.WARNING, "Not available")


async def test_a_model_that_does_not_answer_the_question_is_a_warning() -> None:
    def unlikely(payload: Any) -> tuple[int, Any]:
        status, value = caching(32)(payload)
        top = value["choices"][0]["logprobs"]["top_logprobs"][0]
        return status, value | {"choices": [{"logprobs": {"top_logprobs": [dict.fromkeys(top, -20.0)]}}]}

    checks = await checks_of(v1_completions=unlikely)
    assert_wrong(checks["self-evaluation"], Status.WARNING, "label mass 4.1e-09", "does not answer")


async def test_labels_of_several_tokens_are_a_warning() -> None:
    def pieces(payload: Any) -> tuple[int, Any]:
        return (200, {"tokens": [1, 2]}) if payload.get("prompt") == "Yes" else scripted.tokenize(payload)

    assert_wrong(
        (await checks_of(tokenize=pieces))["self-evaluation"],
        Status.WARNING,
        "the label 'Yes' is 2 tokens",
        "/tokenize",
    )


def beside_the_model(directory: Path, value: object) -> Answers:
    """Write a self-evaluation configuration into the directory; return a list of models that says so."""
    (directory / FILE).write_text(json.dumps(value))
    return fixed(200, {"data": [{"id": "tiny", "max_model_len": 8192, "root": str(directory)}]})


IDS = {"format": 1, "suffix_ids": [7, 8], "win_or_tie_ids": [2], "loss_ids": [3]}


async def test_the_configuration_beside_the_model_is_named_and_evaluated(tmp_path: Path) -> None:
    read_out = {"read_out": {"win_or_tie_ids": [5], "loss_ids": [6]}}
    check = (await checks_of(v1_models=beside_the_model(tmp_path, IDS | read_out)))["self-evaluation"]
    assert check.status is Status.OK
    assert f"By {tmp_path / FILE}: P(win or tie) 0.73" in check.message
    assert "Its scores are not calibrated. Its read-out's labels are known too, and not calibrated." in check.message


MAP = {
    "features": ["log_odds"],
    "buckets": [
        {"up_to": 48, "weights": [1.0], "bias": 0.0, "knots": [[0.0, 0.5]]},
        {"final": True, "weights": [1.0], "bias": 0.0, "knots": [[0.0, 0.5]]},
    ],
}


async def test_a_calibration_is_told_of_and_a_small_label_mass_that_it_allows_is_fine(tmp_path: Path) -> None:
    def unlikely(payload: Any) -> tuple[int, Any]:
        status, value = caching(96)(payload)
        top = value["choices"][0]["logprobs"]["top_logprobs"][0]
        return status, value | {"choices": [{"logprobs": {"top_logprobs": [dict.fromkeys(top, -6.0)]}}]}

    models = beside_the_model(tmp_path, {"format": 1, "calibration": MAP, "min_label_mass": 0.001})
    check = (await checks_of(v1_models=models, v1_completions=unlikely))["self-evaluation"]
    assert check.status is Status.OK
    assert "P(win or tie) 0.50 before calibration, label mass 0.005" in check.message
    assert check.message.endswith("Its scores are calibrated.")
    assert "scores are calibrated" in check_self_evaluation(settings_in(tmp_path, model=str(tmp_path)), None).message


async def test_each_of_several_models_is_evaluated_by_its_own(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(IDS))
    models = [{"id": "tiny", "root": None}, {"id": "own", "root": str(tmp_path)}]
    checks = await checks_of(v1_models=fixed(200, {"data": models}))
    assert "By the literal question" in checks["self-evaluation of tiny"].message
    assert str(tmp_path) in checks["self-evaluation of own"].message


async def test_a_wrong_file_beside_the_model_is_a_warning_and_one_that_is_set_fails(tmp_path: Path) -> None:
    models = beside_the_model(tmp_path, IDS | {"format": 3})
    found = (await checks_of(v1_models=models))["self-evaluation"]
    assert_wrong(found, Status.WARNING, str(tmp_path), "format is 3", "literal question is in force")
    settings = Settings.model_validate({"upstream": "http://up:1", "self_evaluation": tmp_path})
    checks = await check_upstream(settings, ScriptedUpstream(scripted.working_routes()), nonce="n")
    assert_wrong(checks[-1], Status.FAILED, str(tmp_path), "format is 3", "setting self_evaluation")
    local = settings_in(tmp_path, self_evaluation=tmp_path)
    assert_wrong(check_self_evaluation(local, None), Status.FAILED, "format is 3", "setting self_evaluation")
    assert_wrong(check_self_evaluation(settings_in(tmp_path, model=str(tmp_path)), None), Status.WARNING, "format is 3")


def test_before_the_embedded_engine_runs_it_says_what_its_model_will_be_asked_by(tmp_path: Path) -> None:
    assert "the literal question" in check_self_evaluation(settings_in(tmp_path), None).message
    beside_the_model(tmp_path, IDS)
    assert str(tmp_path / FILE) in check_self_evaluation(settings_in(tmp_path, model=str(tmp_path)), None).message


async def test_token_ids_that_vllm_refuses_are_a_warning_in_its_own_words(tmp_path: Path) -> None:
    def refusing(payload: Any) -> tuple[int, Any]:
        if payload["logprob_token_ids"] == [2, 3]:
            return 400, {"error": {"message": "token_id(s) [2] contain out-of-vocab token ids"}}
        return caching(96)(payload)

    checks = await checks_of(v1_models=beside_the_model(tmp_path, IDS), v1_completions=refusing)
    assert_wrong(checks["self-evaluation"], Status.WARNING, "out-of-vocab", "tokenizer")


async def test_a_suffix_that_does_not_end_the_turn_is_a_warning(tmp_path: Path) -> None:
    def closing(payload: Any) -> tuple[int, Any]:
        status, value = scripted.tokenize(payload)
        ended = "messages" in payload and not payload.get("continue_final_message")
        return status, value | ({"tokens": [*value["tokens"], 2]} if ended else {})

    checks = await checks_of(v1_models=beside_the_model(tmp_path, IDS), tokenize=closing)
    assert_wrong(checks["self-evaluation"], Status.WARNING, "begins with token 7", "Begin suffix_ids", "with 2")


async def test_a_suffix_of_trained_tokens_needs_no_end_of_the_turn_and_is_told_of(tmp_path: Path) -> None:
    def closing(payload: Any) -> tuple[int, Any]:
        status, value = scripted.tokenize(payload)
        ended = "messages" in payload and not payload.get("continue_final_message")
        return status, value | ({"tokens": [*value["tokens"], 2]} if ended else {})

    trained = IDS | {"new_ids_from": 7, "win_or_tie_ids": [9], "loss_ids": [10], "calibration": MAP}
    read_out = {"read_out": {"win_or_tie_ids": [11], "loss_ids": [12], "calibration": MAP}}
    models = beside_the_model(tmp_path, trained | read_out)
    check = (await checks_of(v1_models=models, tokenize=closing))["self-evaluation"]
    assert check.status is Status.OK
    assert check.message.endswith(
        "Its question is 2 trained tokens. Its scores are calibrated. "
        "Its read-out's labels are known too, and calibrated."
    )


def test_before_the_embedded_engine_runs_it_tells_of_the_trained_self_evaluation_that_it_will_get(
    tmp_path: Path,
) -> None:
    (tmp_path / "artefact").mkdir()
    beside_the_model(tmp_path / "artefact", IDS | {"new_ids_from": 7, "calibration": MAP})
    artefact = tmp_path / "artefact"
    check = check_self_evaluation(settings_in(tmp_path), artefact)
    assert check.status is Status.OK
    assert f"By {artefact / FILE}. Its question is 2 trained tokens. Its scores are calibrated." in check.message
    plain = settings_in(tmp_path, embedded_self_evaluation=False)
    assert "the literal question" in check_self_evaluation(plain, artefact).message
    assert "the literal question" in check_self_evaluation(settings_in(tmp_path, model="org/other"), artefact).message


@pytest.mark.parametrize("scorer", [ScorerName.READ_OUT, ScorerName.STAGED])
async def test_a_default_policy_that_needs_a_read_out_which_nobody_gave_is_a_warning(scorer: ScorerName) -> None:
    policy = PolicyFields(mode=Mode.ADAPTIVE, scorer=scorer)
    settings = Settings.model_validate({"upstream": "http://up:1", "policy": policy})
    checks = await check_upstream(settings, ScriptedUpstream(scripted.working_routes()), nonce="n")
    assert_wrong(checks[-1], Status.WARNING, f"scorer is {scorer.value}", "setting policy")


# The report


def test_wrong_settings_are_reported_one_by_one() -> None:
    report = examine(settings_error)
    assert [check.name for check in report.checks] == ["settings", "settings"]
    assert report.exit_status == 1


def test_without_an_upstream_it_says_whether_the_embedded_engine_is_installed(tmp_path: Path) -> None:
    report = examine(lambda: settings_in(tmp_path / "data"))
    engine = report.checks[-1]
    assert engine.name == "embedded engine"
    missing = engine_available()
    assert engine.status is (Status.OK if missing is None else Status.FAILED)
    assert engine.remedy == missing


def test_an_upstream_where_nobody_listens_fails(tmp_path: Path) -> None:
    report = examine(lambda: settings_in(tmp_path / "data", upstream="http://127.0.0.1:9"))
    assert report.checks[-1].name == "upstream"
    assert report.exit_status == 1


def test_a_reward_upstream_where_nobody_listens_is_a_warning_as_the_scores_can_decide(tmp_path: Path) -> None:
    report = examine(lambda: settings_in(tmp_path / "data", reward_upstream="http://127.0.0.1:9"))
    assert_wrong(report.checks[-1], Status.WARNING, "http://127.0.0.1:9 cannot judge a reply", "reward_upstream")


@pytest.mark.parametrize(
    ("check", "status"), [(ok("a", "b"), 0), (warning("a", "b", "c"), 0), (failed("a", "b", "c"), 1)]
)
def test_only_a_failure_makes_the_exit_status(check: Check, status: int) -> None:
    assert Report((ok("x", "y"), check)).exit_status == status


def test_a_report_is_printed_with_its_remedies_and_paths_as_they_are() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=40)
    report = Report((ok("store", "/var/lib/[a]/preamble.db is fine."), failed("model", "none", "serve [one]")))
    print_report(report, console, as_json=False)
    assert stream.getvalue() == (
        "ok      store  /var/lib/[a]/preamble.db is fine.\nfailed  model  none\n               -> serve [one]\n"
    )


def test_a_report_is_printed_as_json() -> None:
    stream = io.StringIO()
    print_report(Report((warning("a", "b", "c"),)), Console(file=stream, width=20), as_json=True)
    assert json.loads(stream.getvalue()) == {
        "ok": True,
        "checks": [{"name": "a", "status": "warning", "message": "b", "remedy": "c"}],
    }
