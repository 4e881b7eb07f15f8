"""What is recorded of the tasks of a data set, as a study takes it."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive.evaluation.recording import Setup
from adaptive.evaluation.study import Prompt
from adaptive.evaluation.tasks import Task
from adaptive.policy import ScorerName
from server.eval_cache import RecordingFile
from server.eval_errors import EvalError
from server.eval_sampling import jobs_of


def recorded_prompts(
    tasks: Sequence[Task],
    file: RecordingFile,
    setup: Setup,
    *,
    n: int,
    seed: int,
    checkpoints: tuple[int, ...],
    scorers: Sequence[ScorerName],
) -> list[Prompt]:
    """Return the tasks that have n candidates, each scored at all checkpoints by all scorers, with their verdicts.

    Verdicts are given now, by the tasks' verifiers. Raises `EvalError` where no task has.
    """
    prompts = []
    for task in tasks:
        jobs = jobs_of([task], n, seed, setup)
        recordings = [file.recordings[job.key] for job in jobs if file.has(job.key, checkpoints, scorers)]
        if len(recordings) == n:
            verdicts = tuple(task.verify(recording.text) for recording in recordings)
            prompts.append(Prompt(task.id, tuple(recordings), verdicts))
    if not prompts:
        raise EvalError(
            f"{file.path} has no prompt with {n} candidates of {setup.model} at temperature {setup.temperature:g}, "
            f"{setup.max_tokens} tokens, seed {seed}, these checkpoints and scorers ({', '.join(scorers)})."
        )
    return prompts
