"""Recordings: candidates that were sampled once, with every score they were given, so that any policy can be replayed.

What a recording depends on is its key: the same key means that sampling again would bring nothing new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from adaptive.candidate import Partial
from adaptive.engine import TokenIds
from adaptive.policy import STAGES, ScorerName
from adaptive.scoring import MIN_LABEL_MASS
from adaptive.seeds import SEED_BITS, candidate_seed

# Raised when the meaning of a recorded line changes: older lines are then not taken for what is wanted.
FORMAT: Final = 2
LOGPROB_DECIMALS: Final = 4
"""Of the log-probabilities that are kept; those of a bfloat16 model are not as exact."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a candidate depends on besides its prompt and its seed.

    model: the served name. root, fingerprint: what the upstream says of the weights and of itself, None where it does
    not. question: digest of the self-evaluation in force, its calibration included. temperature, max_tokens: of the
    request. sampled_by: the setup whose candidates were only scored here, None where they were sampled here too.
    min_label_mass: below it the model would be taken not to answer the question. No recording depends on it.
    """

    model: str
    root: str | None
    fingerprint: str | None
    question: str
    temperature: float
    max_tokens: int
    sampled_by: Setup | None = None
    min_label_mass: float = MIN_LABEL_MASS

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return the setup of which `asdict` gave that. Raises `TypeError` for another."""
        origin = plain["sampled_by"]
        return cls(**{**plain, "sampled_by": None if origin is None else Setup.from_plain(origin)})

    def key(self, prompt: str, seed: int) -> str:
        """Return the key of the candidate with that seed for the prompt with that digest."""
        return _digest([FORMAT, *_depended_on(asdict(self)).values(), prompt, seed])


@dataclass(frozen=True, slots=True)
class RecordedScore:
    """One score of a candidate: see `adaptive.candidate.ScoreAt`.

    computed_tokens: prompt tokens that the engine computed for it; 0 means that it was free. took_s: seconds.
    """

    scorer: str
    tokens: int
    final: bool
    value: float
    label_mass: float | None
    computed_tokens: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Recording:
    """One candidate, generated to its end.

    task, prompt: the task's id and its prompt's digest. index: among the candidates of the prompt. checkpoints: where
    it was scored, as far as it is longer than that; and at its end. scorers: by whom, also where that failed.
    prompt_ids, token_ids: of the prompt as the model saw it, and of the candidate with the token that ended it, if the
    model gave one. logprobs: of these, natural, at temperature 1, to `LOGPROB_DECIMALS`. failures: scores that could
    not be had, and why. Times are in seconds from its start; sampled_at and scored_at are seconds since 1970.
    """

    key: str
    task: str
    prompt: str
    index: int
    seed: int
    setup: Setup
    checkpoints: tuple[int, ...]
    scorers: tuple[str, ...]
    text: str
    prompt_ids: TokenIds
    token_ids: TokenIds
    logprobs: tuple[float, ...]
    finish_reason: str
    scores: tuple[RecordedScore, ...]
    failures: tuple[str, ...]
    first_token_s: float | None
    took_s: float
    sampled_at: float
    scored_at: float

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.token_ids)

    def beginning(self, tokens: int) -> Partial:
        """Return its first tokens, as many as asked for or there are, as far as it was kept: without alternatives."""
        return Partial(token_ids=self.token_ids[:tokens], logprobs=self.logprobs[:tokens])

    def to_line(self) -> str:
        """Return it as one line of JSON, without a line break."""
        return json.dumps(asdict(self), ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Recording | None:
        """Return what a line says, None for one that is torn or of another format."""
        try:
            plain = json.loads(line)
            plain["setup"] = Setup.from_plain(plain["setup"])
            plain["scores"] = tuple(RecordedScore(**score) for score in plain["scores"])
            for name in _LISTS:
                plain[name] = tuple(plain[name])
            recording = cls(**{each.name: plain[each.name] for each in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None
        return recording if recording.key == recording.setup.key(recording.prompt, recording.seed) else None

    def score_at(self, scorer: str, tokens: int | None) -> RecordedScore | None:
        """Return the score at that many tokens; the final one for None, and where it ended before.

        `staged` is never recorded of its own: its score is that of the stage.
        """
        unfinished = tokens is not None and self.tokens > tokens
        if scorer == ScorerName.STAGED:
            early, late = STAGES
            scorer = early if unfinished else late
        if unfinished:
            return next((each for each in self.scores if each.scorer == scorer and each.tokens == tokens), None)
        return next((each for each in self.scores if each.scorer == scorer and each.final), None)


def question_digest(suffix: Sequence[int], label_ids: Sequence[int], more: str = "") -> str:
    """Return what tells a self-evaluation, by its question's tokens, from any other. more: what else it depends on."""
    return _digest([list(suffix), list(label_ids), more])


def seed_of(run_seed: int, prompt: str, index: int) -> int:
    """Return the seed of a candidate. prompt: its digest.

    The seeds of one prompt are those of a request (`adaptive.seeds`); each prompt is a request with a seed of its own,
    so that neither their number nor their order matters, and no two prompts are sampled with the same random numbers.
    """
    request_seed = int(_digest([run_seed, prompt])[:16], 16) >> (64 - SEED_BITS)
    return candidate_seed(request_seed, index)


def latest(recordings: Mapping[str, Recording], model: str | None) -> Recording | None:
    """Return the recording that was made last, of that model if one is named; None without any."""
    found = [each for each in recordings.values() if model is None or each.setup.model == model]
    return max(found, key=lambda each: each.scored_at, default=None)


_LISTS: Final = ("checkpoints", "scorers", "prompt_ids", "token_ids", "logprobs", "failures")


def _depended_on(setup: dict[str, Any]) -> dict[str, Any]:
    """Return what recordings depend on, of a setup as `asdict` gives it."""
    kept = {name: value for name, value in setup.items() if name != "min_label_mass"}
    origin = kept["sampled_by"]
    return kept if origin is None else kept | {"sampled_by": _depended_on(origin)}


def _digest(value: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(value, separators=(",", ":")).encode(), digest_size=16).hexdigest()
