"""`preamble selfeval data` and `table`, as somebody types them, with an upstream that says what is written here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from adaptive.training.examples import Group, GroupFile
from server.cli import run
from server.cli_selfeval import _without_secrets
from tests.server.sampling_upstream import MODEL, Reply, SamplingUpstream
from tests.server.scripted_reward import ScriptedReward
from tests.server.test_cli_eval import served

GOOD, BAD = "the answer is 4", "the answer is 5, no doubt about it"
REPLIES = [Reply(GOOD, gap_s=0), Reply(BAD, gap_s=0), Reply("no idea", gap_s=0), Reply("4", gap_s=0)]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory with a data set of six tasks, without settings in the environment."""
    for name in os.environ:
        if name.startswith("PREAMBLE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"2+2, please ({place})?", "verifier": {"kind": "number", "answer": 4}} for place in range(6)]
    write(tmp_path / "sums.jsonl", rows)
    return tmp_path


@pytest.fixture
def data(directory: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["selfeval", "data", "--out", "made", "--n", "4", "--max-tokens", "40", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return command


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def made(directory: Path) -> list[Group]:
    return list(GroupFile(directory / "made" / "examples.jsonl"))


def card(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "made" / "data_card.json").read_text())
    return found


def test_prompts_become_groups_of_compared_answers_with_a_card(directory: Path, data: Command) -> None:
    with served(SamplingUpstream(REPLIES, root="/models/tiny")) as upstream:
        status, out, err = data("--upstream", upstream.url, "--tasks", "sums.jsonl", "--limit", "3")
    assert status == 0, err
    assert "3 of 3 prompts to go, 4 answers each, of tiny; into made/answers.jsonl" in err
    assert "made/examples.jsonl: 3 prompts, 12 answers" in out
    assert len([chat for chat in upstream.chats if "n" in chat]) == 3
    groups = made(directory)
    assert [group.id for group in groups] == ["sums/1", "sums/2", "sums/3"]
    for group in groups:
        assert group.family == "sums"
        assert [answer.win_or_tie for answer in group.answers] == pytest.approx([1, 1 / 3, 1 / 3, 1])
        assert [answer.passed for answer in group.answers] == [True, False, False, True]
        for answer in group.answers:
            assert len(answer.cuts) == min(5, len(answer.token_ids))
            assert answer.cuts[-1] == len(answer.token_ids) == len(answer.text) + 1
    assert groups[0].answers[0].cuts != groups[1].answers[0].cuts
    told = card(directory)
    assert told["model"] == {"name": MODEL, "root": "/models/tiny", "fingerprint": None}
    assert told["sampling"]["answers_per_prompt"] == 4
    assert told["reward"] == {"reward": "verifier"}
    assert told["counts"]["all"]["pass_rate"] == 0.5
    assert told["counts"]["families"]["sums"]["prompts"] == 3
    assert told["machine"]["cores"] >= 1
    assert "| sums | 3 | 3 | 12 |" in (directory / "made" / "DATA_CARD.md").read_text()


def test_the_same_command_goes_on_after_a_torn_line_and_changes_nothing_else(directory: Path, data: Command) -> None:
    arguments = ("--tasks", "sums.jsonl", "--json")
    with served(SamplingUpstream(REPLIES)) as upstream:
        status, first, err = data("--upstream", upstream.url, *arguments, "--limit", "3")
        assert status == 0, err
        before = made(directory)
        kept = directory / "made" / "answers.jsonl"
        *whole, torn = kept.read_text().splitlines(keepends=True)
        kept.write_text("".join(whole) + torn[: len(torn) // 2])  # killed while it wrote
        asked = len(upstream.chats)
        status, again, err = data("--upstream", upstream.url, *arguments)
        assert status == 0, err
        assert "Ignored: 1 lines of made/answers.jsonl" in err
        assert "4 of 6 prompts to go" in err
        assert len([chat for chat in upstream.chats[asked:] if "n" in chat]) == 4
        status, third, err = data("--upstream", upstream.url, *arguments)
        assert (status, err.count("to go")) == (0, 0)
    assert made(directory)[:3] == before
    assert len(made(directory)) == 6
    assert json.loads(first)["counts"]["all"]["prompts"] == 3
    assert json.loads(third)["counts"] == json.loads(again)["counts"]
    assert not list((directory / "made").glob("*.part"))


def test_a_corrected_verifier_needs_no_new_sampling(directory: Path, data: Command) -> None:
    with served(SamplingUpstream(REPLIES)) as upstream:
        data("--upstream", upstream.url, "--tasks", "sums.jsonl")
        write(directory / "sums.jsonl", [{"prompt": "2+2, please (0)?", "verifier": {"kind": "number", "answer": 5}}])
        asked = len(upstream.chats)
        assert data("--upstream", upstream.url, "--tasks", "sums.jsonl")[0] == 0
        assert len(upstream.chats) == asked + 1  # which asks for the fingerprint
    (group,) = made(directory)
    assert [answer.passed for answer in group.answers] == [False, True, False, False]


@pytest.mark.parametrize("other", [("--n", "3"), ("--temperature", "0.5"), ("--seed", "1"), ("--max-tokens", "39")])
def test_what_changes_the_answers_is_sampled_anew(directory: Path, data: Command, other: tuple[str, str]) -> None:
    with served(SamplingUpstream(REPLIES)) as upstream:
        arguments = ("--upstream", upstream.url, "--tasks", "sums.jsonl", "--limit", "1")
        data(*arguments)
        status, _, err = data(*arguments, *other)
    assert status == 0, err
    assert "1 of 1 prompts to go" in err
    assert len((directory / "made" / "answers.jsonl").read_text().splitlines()) == 2


def test_a_busy_upstream_is_waited_for(directory: Path, data: Command) -> None:
    with served(SamplingUpstream(REPLIES, busy=3)) as upstream:
        status, _, err = data("--upstream", upstream.url, "--tasks", "sums.jsonl")
    assert status == 0, err
    assert "Lost" not in err
    assert len(made(directory)) == 6


def test_prompts_that_cannot_be_had_are_lost_and_counted_and_asked_for_again(directory: Path, data: Command) -> None:
    with served(SamplingUpstream([Reply("", status=400)])) as upstream:
        status, _, err = data("--upstream", upstream.url, "--tasks", "sums.jsonl")
        assert status == 1
        assert "Lost: sums/1: /v1/chat/completions was answered with 400: scripted refusal" in err
        assert "No prompt was answered; made/examples.jsonl is not written." in err
        assert not (directory / "made" / "examples.jsonl").exists()
        upstream.replies = REPLIES
        assert data("--upstream", upstream.url, "--tasks", "sums.jsonl")[0] == 0
    assert len(made(directory)) == 6


def test_some_lost_prompts_leave_the_others(directory: Path, data: Command) -> None:
    class Particular(SamplingUpstream):
        async def _chat(self, request_id: str, payload: dict[str, Any], receive: Any, send: Any) -> None:
            self.replies = [Reply("", status=400)] if "(2)" in str(payload["messages"]) else REPLIES
            await super()._chat(request_id, payload, receive, send)

    with served(Particular(REPLIES)) as upstream:
        status, out, err = data("--upstream", upstream.url, "--tasks", "sums.jsonl", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert (told["prompts_asked"], told["prompts_lost"]) == (6, 1)
    assert list(told["lost_because"]) == ["sums/3"]
    assert [group.id for group in made(directory)] == ["sums/1", "sums/2", "sums/4", "sums/5", "sums/6"]


def test_many_lost_in_a_row_end_the_run(directory: Path, data: Command) -> None:
    write(directory / "many.jsonl", [{"prompt": str(place)} for place in range(100)])
    with served(SamplingUpstream([Reply("", status=400)])) as upstream, ScriptedServed() as reward:
        arguments = ("--upstream", upstream.url, "--tasks", "many.jsonl", "--reward", "reward_model")
        status, _, err = data(*arguments, "--reward-upstream", reward.url)
    assert status == 1
    assert "20 prompts in a row were lost; the last: /v1/chat/completions was answered with 400" in err
    assert len([chat for chat in upstream.chats if "n" in chat]) < 40


class ScriptedServed:
    """A reward upstream in another thread: longer replies are better."""

    def __enter__(self) -> ScriptedReward:
        def length(judged: str) -> float:
            return float(len(json.loads(judged)[-1]["content"]))

        self._context = served(ScriptedReward(reward=length))  # type: ignore[arg-type]
        self.reward: ScriptedReward = self._context.__enter__()  # type: ignore[assignment]
        return self.reward

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)


def test_a_reward_model_judges_prompts_without_verifiers_once(directory: Path, data: Command) -> None:
    write(directory / "plain.jsonl", [{"prompt": "tell me"}, {"prompt": "and me"}])
    with served(SamplingUpstream(REPLIES)) as upstream, ScriptedServed() as reward:
        arguments = ["--upstream", upstream.url, "--tasks", "plain.jsonl", "--reward", "reward_model"]
        arguments += ["--reward-upstream", reward.url]
        status, _, err = data(*arguments)
        assert status == 0, err
        asked = len(reward.judged())
        assert asked == 8
        assert data(*arguments)[0] == 0
        assert len(reward.judged()) == asked
    group = made(directory)[0]
    assert [answer.reward for answer in group.answers] == [float(len(reply.text)) for reply in REPLIES]
    assert [answer.passed for answer in group.answers] == [False, True, False, False]  # the best, as no rule tells
    assert card(directory)["reward"] == {"reward": "reward_model", "url": reward.url, "model": None}


def test_a_judge_is_asked_with_the_key_that_a_variable_holds(
    directory: Path, data: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-of-the-judge")
    judge = SamplingUpstream([Reply("I give it 7/10", gap_s=0)])
    with served(SamplingUpstream(REPLIES)) as upstream, served(judge):
        arguments = ["--upstream", upstream.url, "--tasks", "sums.jsonl", "--limit", "1", "--reward", "judge"]
        arguments += ["--judge-upstream", f"{judge.url}/v1", "--judge-model", MODEL, "--judge-key-env", "JUDGE_KEY"]
        status, _, err = data(*arguments)
    assert status == 0, err
    (group,) = made(directory)
    assert [answer.reward for answer in group.answers] == pytest.approx([6 / 9] * 4)
    assert [answer.passed for answer in group.answers] == [True, False, False, True]  # as the verifier says
    assert len(judge.chats) == 4
    assert "sk-secret" not in "".join(path.read_text() for path in (directory / "made").iterdir())


def test_preferences_are_examples_without_sampling(directory: Path, data: Command) -> None:
    write(directory / "pairs.jsonl", [{"prompt": "2+2?", "chosen": GOOD, "rejected": BAD, "family": "people"}])
    with served(SamplingUpstream([])) as upstream:
        status, _, err = data("--upstream", upstream.url, "--preferences", "pairs.jsonl", "--reward", "preferences")
    assert status == 0, err
    (group,) = made(directory)
    assert (group.family, [answer.win_or_tie for answer in group.answers]) == ("people", [1.0, 0.0])
    assert [answer.text for answer in group.answers] == [GOOD, BAD]
    assert all(len(answer.logprobs) == len(answer.text) + 1 for answer in group.answers)
    assert card(directory)["sampling"]["answers_per_prompt"] is None
    assert "logged, not sampled" in (directory / "made" / "DATA_CARD.md").read_text()


def test_constitutions_are_mixed_in_and_what_respects_them_is_rewarded(directory: Path, data: Command) -> None:
    rule = {"kind": "regex", "pattern": r"^\d+$", "answer": "4"}
    write(directory / "rules.jsonl", [{"id": "short", "text": "Say only the number.", "verifier": rule}])
    with served(SamplingUpstream(REPLIES)) as upstream:
        arguments = ["--upstream", upstream.url, "--tasks", "sums.jsonl", "--constitutions", "rules.jsonl"]
        status, _, err = data(*arguments, "--constitution-share", "0.5")
    assert status == 0, err
    groups = made(directory)
    ruled = [group for group in groups if group.constitution == "short"]
    assert 0 < len(ruled) < len(groups)
    for group in ruled:
        assert group.messages[0]["role"] == "system"
        assert "1. Say only the number." in group.messages[0]["content"]
        assert [answer.reward for answer in group.answers] == [0.5, 0.0, 0.0, 1.0]
        assert [answer.passed for answer in group.answers] == [False, False, False, True]
    assert card(directory)["constitutions"]["share"] == len(ruled) / len(groups)


def test_outcomes_give_prompts_to_a_reward_model(directory: Path, data: Command) -> None:
    write(directory / "log.jsonl", [{"prompt": "one", "constitution": ["Be brief."]}, {"prompt": "two"}])
    with served(SamplingUpstream(REPLIES)) as upstream, ScriptedServed() as reward:
        arguments = ["--upstream", upstream.url, "--outcomes", "log.jsonl", "--reward", "reward_model"]
        status, _, err = data(*arguments, "--reward-upstream", reward.url)
    assert status == 0, err
    first, second = made(directory)
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert (first.constitution, second.constitution) == ("outcome/1", None)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_goes_on_where_it_was(directory: Path, data: Command, number: int, status: int) -> None:
    kept = directory / "made" / "answers.jsonl"
    with served(SamplingUpstream([Reply(GOOD, gap_s=0.4), Reply(BAD)])) as upstream:
        command = [sys.executable, "-m", "server", "selfeval", "data", "--out", "made", "--n", "4"]
        command += ["--max-tokens", "40", "--concurrency", "1", "--tasks", "sums.jsonl", "--upstream", upstream.url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            while not (kept.exists() and kept.read_bytes().count(b"\n") == 2):
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            _, err = process.communicate(timeout=20)
        assert process.returncode == status
        assert ("The answers to 2 prompts are kept in made/answers.jsonl" in err) == (number != signal.SIGKILL)
        assert not (directory / "made" / "examples.jsonl").exists()
        upstream.replies = REPLIES
        found, _, err = data("--upstream", upstream.url, "--tasks", "sums.jsonl")
        assert found == 0, err
        assert "4 of 6 prompts to go" in err
    assert [group.answers[1].text for group in made(directory)] == [BAD] * 6
    assert [group.answers[3].text for group in made(directory)] == [BAD] * 2 + ["4"] * 4


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 1, "There are no prompts: give --tasks, --outcomes or --preferences."),
        (("--tasks", "gsm9k"), 1, "gsm9k is neither a file nor one of"),
        (("--outcomes", "log.jsonl"), 1, "--outcomes has no verifiers"),
        (("--tasks", "sums.jsonl", "--preferences", "p.jsonl"), 1, "--preferences is for --reward preferences"),
        (("--tasks", "sums.jsonl", "--reward", "preferences"), 1, "takes its prompts and answers from --preferences"),
        (("--tasks", "sums.jsonl", "--tasks", "sums.jsonl"), 1, "id 'sums/1' is there twice"),
        (("--tasks", "sums.jsonl", "--constitutions", "no.jsonl"), 1, "no.jsonl cannot be read"),
        (("--tasks", "sums.jsonl", "--reward", "reward_model"), 1, "needs a model: --reward-directory, or"),
        (("--tasks", "sums.jsonl", "--reward", "judge"), 1, "needs --judge-upstream and --judge-model"),
        (("--tasks", "sums.jsonl", "--judge-key-env", "NO_SUCH_KEY"), 2, "the environment has no NO_SUCH_KEY"),
        (("--tasks", "sums.jsonl", "--splits", "0.5,0.6,0.1"), 2, "write three shares whose sum is 1"),
        (("--tasks", "sums.jsonl", "--splits", "0.9,0.1"), 2, "write three shares whose sum is 1"),
        (("--tasks", "sums.jsonl", "--reward", "luck"), 2, "'luck' is not one of"),
        (("--tasks", "sums.jsonl", "--upstream", "http://127.0.0.1:9"), 1, "No upstream answers"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(
    data: Command, arguments: tuple[str, ...], status: int, said: str
) -> None:
    found, out, err = data(*arguments)
    assert (found, out) == (status, "")
    assert said in " ".join(err.split())


def test_parquet_without_its_library_is_refused_before_anything_is_sampled(directory: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from server.cli import run; sys.exit(run(sys.argv[1:]))"
    asked = ["selfeval", "data", "--out", "made", "--tasks", "sums.jsonl", "--format", "parquet"]
    command = [sys.executable, "-c", code, *asked, "--upstream", "http://127.0.0.1:9"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=directory, timeout=60)
    assert ended.returncode == 1
    assert "`pip install pyarrow`" in ended.stderr


def test_prompts_become_parquet_that_reads_back(directory: Path, data: Command) -> None:
    with served(SamplingUpstream(REPLIES, root="/models/tiny")) as upstream:
        status, _, err = data("--upstream", upstream.url, "--tasks", "sums.jsonl", "--format", "parquet")
    assert status == 0, err
    groups = list(GroupFile(directory / "made" / "examples.parquet"))
    assert len(groups) == 6
    assert all(len(each.answers) == 4 for each in groups)


def test_secrets_of_the_engine_are_not_in_the_card() -> None:
    shown = _without_secrets(["data", "--engine-args", "--api-key abc --seed 1", "--engine-args=--api-key=abc"])
    assert "abc" not in " ".join(shown)
    assert "--seed 1" in shown[2]


def tabled(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = run(["selfeval", "table", *arguments, "--resamples", "50"])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_table_is_printed_and_is_json_with_scores_of_files(
    directory: Path, data: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(SamplingUpstream(REPLIES)) as upstream:
        assert data("--upstream", upstream.url, "--tasks", "sums.jsonl")[0] == 0
    scored = [
        {"id": group.id, "answer": place, "tokens": 1, "final": final, "scorer": "probe", "value": answer.reward}
        for group in made(directory)
        for place, answer in enumerate(group.answers)
        for final in (False, True)
    ]
    write(directory / "scores.jsonl", scored)
    status, out, err = tabled(capsys, "made", "--checkpoints", "1,8", "--scores", "scores.jsonl")
    assert status == 0, err
    line = next(line for line in out.splitlines() if line.startswith("sums"))
    assert line.split()[:4] == ["sums", "6", "4.0", "15"]
    assert "100.0 [100, 100]" in next(line for line in out.splitlines() if " probe " in line)
    status, out, err = tabled(capsys, "made/examples.jsonl", "--checkpoints", "1", "--json")
    assert status == 0, err
    (family,) = json.loads(out)["families"]
    assert family["single"]["value"] == 0.5
    assert family["oracle"]["value"] == 1.0
    by_scorer = {(each["scorer"], each["tokens"]): each["value"] for each in family["pair_accuracy"]}
    assert by_scorer["longest", None] == 0.25  # of 16 and 2 against 33 and 8 tokens
    assert by_scorer["mean_log_probability", 1] == 0.5


def test_the_table_is_of_the_splits_that_are_asked_for(
    directory: Path, data: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(SamplingUpstream(REPLIES)) as upstream:
        assert data("--upstream", upstream.url, "--tasks", "sums.jsonl", "--splits", "0.5,0,0.5")[0] == 0
    counted = {
        split: json.loads(tabled(capsys, "made", "--split", split, "--json")[1])["families"][0]["prompts"]
        for split in ("train", "test")
    }
    assert sum(counted.values()) == 6
    status, _, err = tabled(capsys, "made", "--split", "calibration")
    assert (status, "has no prompts of these splits" in err) == (1, True)


def test_a_torn_line_of_a_data_file_is_counted(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "examples.jsonl").write_text('{"format":1,"id":"a')
    status, _, err = tabled(capsys, str(directory))
    assert status == 1
    assert "Ignored: 1 lines of" in err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("nowhere",), 1, "nowhere is no data file and has none; make one: preamble selfeval data --out nowhere"),
        (("sums.jsonl", "--scores", "no.jsonl"), 1, "no.jsonl"),
        (("sums.jsonl", "--checkpoints", "0"), 2, "write whole numbers of tokens"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, said: str
) -> None:
    found, out, err = tabled(capsys, *arguments)
    assert (found, out) == (status, "")
    assert said in " ".join(err.split())
