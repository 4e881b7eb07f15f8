"""`preamble selfeval policy`, as somebody types it, on recorded candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adaptive.evaluation.tasks import load
from adaptive.policy import Mode, ScorerName
from server.cli_selfeval import selfeval_app
from server.eval_cache import RecordingFile
from server.eval_errors import EvalError
from server.policy import build
from server.policy_file import read_policy_file
from server.settings import load_settings
from tests.adaptive.evaluation.recordings import Made, recording

N = 4
SETUP = ("--n", str(N), "--checkpoints", "4,8")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a data set of sums; of each the second answer is right, and scored so."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"2+2, please ({place})?", "verifier": {"kind": "number", "answer": 4}} for place in range(24)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record(tmp_path, right=0.9)
    return tmp_path


def record(directory: Path, right: float, without: ScorerName | None = ScorerName.READ_OUT) -> None:
    path = directory / "results" / "eval-sums" / "candidates.jsonl"
    path.unlink(missing_ok=True)
    with RecordingFile(path) as file:
        for task in load("sums.jsonl").tasks:
            for index in range(N):
                good = index == 1
                made = recording(task.digest, index, Made(right if good else 0.2))
                scorers = tuple(each for each in made.scorers if each != without)
                scores = tuple(each for each in made.scores if each.scorer in scorers)
                text = "It is 4" if good else "It is 5"
                file.add(replace(made, task=task.id, text=text, scorers=scorers, scores=scores))


def target(*arguments: str) -> Result:
    return CliRunner().invoke(selfeval_app, ["policy", "sums.jsonl", *SETUP, *arguments], env={"COLUMNS": "200"})


def test_the_policy_is_told_with_what_to_expect_and_written_for_serve(directory: Path) -> None:
    result = target("--gain", "1")
    assert result.exit_code == 0, result.output
    out = " ".join(result.stdout.split())
    assert "sums: 24 prompts, 4 candidates each of tiny at temperature 0.8, at most 16 tokens." in out
    assert "12 prompts chose for 100% of the gain, the figures are of the other 12." in out
    assert "one sample 1.00 [1.0, 1.0] 10 [10, 10] 25.0 [25, 25] 25.0 [25, 25] 0 [0, 0]" in out
    assert "best of 4 4.00 [4.0, 4.0] 80 [80, 80] 100.0 [100, 100]" in out
    assert "proposed 2.75 [2.8, 2.8] 55 [55, 55] 100.0 [100, 100] 100.0 [100, 100] 100 [100, 100]" in out
    assert "Policy: mode=adaptive, n_max=4" in out
    assert "`preamble serve --policy-file policy.json` follows it." in out
    settings = load_settings(environ={}, policy_file="policy.json")
    policy = build(settings.policy.said())
    assert (policy.mode, policy.n_max, policy.checkpoints) == (Mode.ADAPTIVE, 4, ())
    assert policy.annealing.start == policy.annealing.end  # as it was replayed
    about: Any = read_policy_file(Path("policy.json")).about
    assert about["target"] == {"gain": 1.0}
    assert about["expected"]["drawn"] == {"value": 2.75, "low": 2.75, "high": 2.75}
    assert about["data"]["prompts_that_tell"] == 12
    assert about["model"]["name"] == "tiny"
    assert about["problem"] is None


def test_a_policy_by_staged_is_found_where_both_of_its_stages_were_recorded(directory: Path) -> None:
    record(directory, right=0.9, without=None)
    result = target("--gain", "1", "--scorer", "staged")
    assert result.exit_code == 0, result.output
    assert "policies by staged" in " ".join(result.stdout.split())
    policy = build(load_settings(environ={}, policy_file="policy.json").policy.said())
    assert policy.scorer is ScorerName.STAGED


def test_json_has_the_policy_and_all_figures(directory: Path) -> None:
    result = target("--samples", "2", "--json", "--out", "made/for/it.json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["written"] == "made/for/it.json"
    assert found["policy"]["n_max"] == 2
    assert found["about"]["expected"]["drawn"]["value"] <= 2
    written = json.loads((directory / "made/for/it.json").read_text())
    assert written.pop("about") == found["about"]
    assert written == found["policy"]


def test_tokens_may_weigh_less_for_scores(directory: Path) -> None:
    weighed = json.loads(target("--tokens", "22", "--prefill-weight", "0", "--json").stdout)
    assert weighed["about"]["expected"]["tokens"]["value"] == 22
    assert weighed["about"]["expected"]["share"]["value"] == 1.0


def test_what_cannot_be_had_is_said_and_only_written_by_force(directory: Path) -> None:
    result = target("--tokens", "5")
    assert result.exit_code == 1
    assert "makes do with 5 tokens per prompt; the least is 20" in result.stderr
    assert "policy.json was not written" in result.stderr
    assert "best of 4" in result.stdout
    assert not Path("policy.json").exists()
    assert json.loads(target("--tokens", "5", "--json").stdout)["written"] is None
    forced = target("--tokens", "5", "--force")
    assert forced.exit_code == 0
    assert "the least is 20" in forced.stderr
    assert "the least is 20" in read_policy_file(Path("policy.json")).about["problem"]


def test_a_scorer_that_ranks_wrongly_gains_nothing_and_the_figures_say_so(directory: Path) -> None:
    record(directory, right=0.1)
    result = target("--gain", "0.5")
    assert result.exit_code == 1
    assert "Full best of 4 by self_evaluation gains -25.0 [-25.0, -25.0] points of reward" in result.stderr
    assert not Path("policy.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of --gain, --samples and --tokens"),
        (("--gain", "0.5", "--tokens", "9"), "give one of --gain, --samples and --tokens"),
        (("--gain", "75"), "give a share above 0, up to 1"),
        (("--samples", "0"), "give at least 1"),
        (("--gain", "0.5", "--scorer", "taste"), "taste"),
        (("--gain", "0.5", "--checkpoints", "x"), "write whole numbers of tokens"),
    ],
)
def test_a_wrong_option_is_told(directory: Path, arguments: tuple[str, ...], said: str) -> None:
    result = target(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--limit", "10"), "10 prompts are too few"),
        (("--scorer", "read_out"), "scorers (read_out)"),
        (("--scorer", "staged"), "scorers (read_out, self_evaluation)"),
        (("--model", "other"), "has no candidates of other. Sample some: preamble eval sums.jsonl"),
        (("--cache", "none.jsonl"), "none.jsonl has no candidates"),
        (("--checkpoints", "4,32"), "these checkpoints"),
        (("--seed", "1"), "seed 1"),
        (("--out", "sums.jsonl/policy.json"), "sums.jsonl/policy.json cannot be written"),
    ],
)
def test_recordings_that_do_not_do_are_told(directory: Path, arguments: tuple[str, ...], said: str) -> None:
    result = target("--gain", "1", *arguments)
    assert isinstance(result.exception, EvalError)
    assert said in str(result.exception)


def test_a_torn_line_is_told_and_its_prompt_left_out(directory: Path) -> None:
    path = directory / "results" / "eval-sums" / "candidates.jsonl"
    path.write_text(path.read_text()[:-40])
    result = target("--gain", "1")
    assert result.exit_code == 0, result.output
    assert "Ignored: 1 lines" in result.stderr
    assert "sums: 23 prompts" in result.stdout
