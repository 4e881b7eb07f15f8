"""The checks of the upstream: is it there, what is it, and what of it is switched on."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from adaptive.policy import READING_OUT
from adaptive.scoring import ScoringFailed
from server.checks import Check, failed, ok, warning
from server.errors import UpstreamError
from server.probe import (
    ProbeClient,
    Scoring,
    UpstreamModel,
    UpstreamProfile,
    probe,
    score_labels,
    tokenize,
    why_not_scored,
)
from server.self_evaluation_config import (
    SelfEvaluationConfig,
    SelfEvaluationConfigError,
    in_force,
    read_config,
)
from server.self_evaluation_tokens import QuestionTokens, SelfEvaluationTokens
from server.settings import Settings

# Reuse is by whole blocks: with larger ones a short constitution is computed again for every request.
_LARGEST_SENSIBLE_BLOCK: Final = 64
_SELF_EVALUATION: Final = "self-evaluation"
_TINY_CHAT: Final = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
)


async def check_upstream(settings: Settings, client: ProbeClient, *, nonce: str) -> list[Check]:
    """Return what is fine about the upstream and what is not. `nonce`: a text that no earlier prompt began with."""
    profile = await probe(client)
    if not profile.reachable:
        return [await _unreachable(settings, client)]
    if not profile.models:
        return [ok("upstream", f"{settings.upstream} answers."), _no_models(profile)]
    examination = _Examination(settings, client, profile, nonce)
    checks = [
        ok("upstream", f"{settings.upstream} answers."),
        _model(profile),
        _system_message(settings, profile),
        _prefix_caching(profile),
        await examination.cache_hit(),
        _scoring(profile),
    ]
    if profile.scoring is Scoring.LOGPROB_TOKEN_IDS:
        checks += [await examination.self_evaluation(model) for model in profile.models]
    return checks


async def _unreachable(settings: Settings, client: ProbeClient) -> Check:
    try:
        await client.request_json("GET", "/version")
    except UpstreamError as error:
        reason = error.message.partition(". ")[0]
    else:
        reason = "it answered only now, too late"
    return failed(
        "upstream",
        f"{settings.upstream} does not answer: {reason}.",
        "Start vLLM there, or correct the setting upstream (--upstream URL).",
    )


def _no_models(profile: UpstreamProfile) -> Check:
    if profile.models_status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        remedy = "Set PREAMBLE_UPSTREAM_API_KEY to the key that vLLM was started with."
        return failed("model", "It refuses our API key.", remedy)
    return failed(
        "model",
        f"/v1/models lists none (status {profile.models_status}).",
        "Point the setting upstream at the base URL of a vLLM that serves a model.",
    )


def _model(profile: UpstreamProfile) -> Check:
    served = ", ".join(
        model.name if model.max_model_len is None else f"{model.name} ({model.max_model_len:,} tokens)"
        for model in profile.models
    )
    if profile.version is None:
        remedy = "Point the setting upstream at vLLM itself; behind another proxy some checks cannot be made."
        return warning("model", f"It serves {served}, and does not say which vLLM it is.", remedy)
    return ok("model", f"vLLM {profile.version} serves {served}.")


def _system_message(settings: Settings, profile: UpstreamProfile) -> Check:
    name = "system message"
    if settings.system_role != "auto":
        return ok(name, f"Not asked: system_role is set to {settings.system_role}.")
    if profile.honours_system:
        return ok(name, "The chat template puts it into the prompt.")
    if profile.honours_system is False:
        remedy = "Nothing to do; a model with a system role in its template follows constitutions better."
        return warning(name, "The chat template has none: constitutions go into the first user message.", remedy)
    return warning(
        name,
        "Whether the chat template honours one could not be found out; it is taken to.",
        "Serve a model with a chat template and leave /tokenize reachable, or set system_role.",
    )


def _prefix_caching(profile: UpstreamProfile) -> Check:
    name = "prefix caching"
    if profile.prefix_caching is None:
        remedy = "Leave vLLM's /metrics reachable, and start it with --enable-prefix-caching."
        return warning(name, "Whether it is on could not be read from /metrics.", remedy)
    if not profile.prefix_caching:
        remedy = "Start vLLM with --enable-prefix-caching."
        return warning(name, "It is off: every request computes its constitution again.", remedy)
    size = profile.block_size
    if size is not None and size > _LARGEST_SENSIBLE_BLOCK:
        return warning(
            name,
            f"It is on, in blocks of {size} tokens: what is shorter is computed again for every request.",
            "Start vLLM with --block-size 32 (CPU) or 16 (GPU).",
        )
    return ok(name, "It is on." if size is None else f"It is on, in blocks of {size} tokens.")


def _scoring(profile: UpstreamProfile) -> Check:
    name = "label scoring"
    if profile.scoring is Scoring.LOGPROB_TOKEN_IDS:
        return ok(name, "Log-probabilities of chosen tokens, in one request of one token.")
    if profile.scoring is Scoring.GENERATIVE_SCORING:
        remedy = "Use vLLM 0.32: its /v1/completions takes logprob_token_ids."
        return warning(name, "Only by /generative_scoring, which does not tell the label mass.", remedy)
    remedy = "Use vLLM 0.32, and leave /v1/completions reachable."
    return warning(name, "Not available: the model cannot evaluate its own answers.", remedy)


@dataclass(frozen=True, slots=True)
class _Examination:
    """The checks that send requests of their own."""

    settings: Settings
    client: ProbeClient
    profile: UpstreamProfile
    nonce: str

    @property
    def _model(self) -> str:
        return self.profile.model_names[0]

    async def cache_hit(self) -> Check:
        """Send one prompt twice; the second time most of it should come from the cache."""
        name = "cache hit"
        if not self.profile.cached_token_details:
            remedy = "Start vLLM with --enable-prompt-tokens-details."
            return warning(name, "usage does not say which tokens came from the cache, so reuse stays unseen.", remedy)
        words = 4 * (self.profile.block_size or 16)
        prompt = await tokenize(self.client, self._model, self.nonce + " again" * words)
        if prompt is not None:
            await score_labels(self.client, self._model, prompt, (0,))
            second = await score_labels(self.client, self._model, prompt, (0,))
            if second is not None and second.cached_tokens:
                return ok(
                    name, f"Of two equal prompts the second reused {second.cached_tokens} of {len(prompt)} tokens."
                )
        remedy = "Start vLLM with --enable-prefix-caching; if it is on, give it more memory for its cache."
        return warning(name, "Of two equal prompts the second reused nothing.", remedy)

    async def self_evaluation(self, model: UpstreamModel) -> Check:
        """Ask a model about a tiny answer of its own, as adaptive sampling does, and say what it is asked by."""
        name = _SELF_EVALUATION if len(self.profile.models) == 1 else f"{_SELF_EVALUATION} of {model.name}"
        explicit = self.settings.self_evaluation
        try:
            config = in_force(None if explicit is None else read_config(explicit), model)
        except SelfEvaluationConfigError as error:
            if explicit is not None:
                return failed(name, str(error), "Correct the file, or the setting self_evaluation.")
            return warning(name, f"{error} The literal question is in force.", "Correct the file, then start anew.")
        tokens = SelfEvaluationTokens(self.client, upstream_now=lambda: None, config_of=lambda _: config)
        try:
            question = await tokens.of(model.name)
            prompt = await tokens.answered(model.name, _TINY_CHAT)
        except ScoringFailed as error:
            remedy = "Serve a chat model whose tokenizer has the labels, and leave /tokenize reachable."
            return warning(name, f"By {config.name}: {error}.", remedy)
        return await self._evaluated(name, model.name, config, question, prompt)

    async def _evaluated(
        self, name: str, model: str, config: SelfEvaluationConfig, question: QuestionTokens, prompt: tuple[int, ...]
    ) -> Check:
        asked = [(prompt + question.suffix, question.labels)]
        asked += [(prompt, config.read_out)] if config.read_out is not None else []
        read = [await score_labels(self.client, model, sequence, labels.ids) for sequence, labels in asked]
        for (sequence, labels), scores in zip(asked, read, strict=True):
            if scores is None:
                why = await why_not_scored(self.client, model, sequence, labels.ids)
                remedy = "Take the token ids from this model's own tokenizer, or run doctor again if it was busy."
                return warning(name, f"The answer to {config.name} could not be read: {why}", remedy)
        score = question.labels.evaluate(read[0].logprobs if read[0] is not None else ())
        raw = " before calibration" if config.calibration is not None else ""
        found = f"By {config.name}: P(win or tie) {score.p_win_or_tie:.2f}{raw}, label mass {score.label_mass:.2g}"
        if score.label_mass < config.min_label_mass:
            remedy = "Use a larger model, or one trained to evaluate itself."
            return warning(name, f"{found}: the model does not answer the question.", remedy)
        if not question.ends_the_turn and not config.trained_suffix:
            remedy = f"Begin suffix_ids in {config.name} with {question.end_id}, unless it was trained as it is."
            return warning(
                name, f"{found}; its suffix begins with token {question.suffix[0]}, not with the turn's end.", remedy
            )
        scorer = self.settings.policy.said().get("scorer")
        if config.read_out is None and scorer in READING_OUT:
            remedy = f"Set another scorer in the setting {self.settings.policy_from}, or give the read-out's labels."
            return warning(name, f"{found}; the default policy's scorer is {scorer}, and no labels are known.", remedy)
        return ok(name, f"{found}, for one tiny answer. {config.about}")
