"""A reward model from a directory, run by transformers in this process: `--reward reward_model --reward-directory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from server.eval_errors import EvalError
from server.reward import asked

_BATCH: Final = 8
_TWO_CLASSES: Final = 2


class LocalRewardModel:
    """A sequence classifier: its logit is the reward; of two classes, the second's minus the first's.

    It is given the conversation in its own chat template, or without one what was asked and the reply as a pair. On a
    GPU if there is one. Raises `EvalError` for a directory that holds no such model.
    """

    def __init__(self, directory: Path) -> None:
        try:
            import torch  # noqa: PLC0415 -- seconds, and only for who asks for it
            import transformers  # noqa: PLC0415 -- the same
        except ImportError as error:
            raise EvalError(
                "A reward model in this process needs torch and transformers. Install an engine extra, or serve it "
                "with vLLM and give --reward-upstream."
            ) from error
        if not (directory / "config.json").is_file():
            raise EvalError(f"{directory} holds no model: it has no config.json. Give --reward-directory another.")
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
                directory, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise EvalError(f"{directory} holds no sequence classifier that transformers can load: {error}") from error
        self._model = model.to(self._device).eval()
        if model.config.num_labels not in {1, _TWO_CLASSES}:
            raise EvalError(f"{directory} has {model.config.num_labels} classes; a reward model has one or two.")

    def __call__(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> Sequence[float]:
        """Return one reward per conversation, the last message of which is the reply. Raises `ValueError`."""
        found: list[float] = []
        # One at a time where the model cannot tell padding: its last token would be the padding's.
        batch = _BATCH if self._model.config.pad_token_id is not None else 1
        for start in range(0, len(conversations), batch):
            found += self._rewards(conversations[start : start + batch])
        return found

    def _rewards(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
        padding = len(conversations) > 1
        if self._tokenizer.chat_template is not None:
            texts = [self._tokenizer.apply_chat_template(list(each), tokenize=False) for each in conversations]
            # The template has written the special tokens.
            inputs = self._tokenizer(texts, add_special_tokens=False, padding=padding, return_tensors="pt")
        else:
            questions = [asked(each[:-1]) for each in conversations]
            replies = [str(each[-1]["content"]) for each in conversations]
            inputs = self._tokenizer(questions, replies, padding=padding, return_tensors="pt")
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if longest is not None and inputs["input_ids"].shape[1] > longest:
            raise ValueError(f"{inputs['input_ids'].shape[1]} tokens are more than its {longest}")
        with self._torch.inference_mode():
            logits = self._model(**inputs.to(self._device)).logits.float()
        rewards = logits[:, 1] - logits[:, 0] if logits.shape[1] == _TWO_CLASSES else logits[:, 0]
        return [float(reward) for reward in rewards]
