"""A reward model from a directory: a tiny one with random weights, made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptive.engine import EngineFailed
from server.eval_errors import EvalError
from server.selfeval_local_reward import LocalRewardModel
from server.selfeval_rewards import LocalReward
from tests.server.test_selfeval_rewards import PROMPT

WORDS = ["[PAD]", "[UNK]", "2+2?", "Be", "brief", "four", "five", "user", "assistant", "system", ":"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"


def chat(reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": reply}]


@pytest.fixture(scope="module", params=["classes", "padded", "no_template"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalRewardModel:
    return LocalRewardModel(saved(tmp_path_factory.mktemp("reward"), request.param))


def saved(directory: Path, kind: str, labels: int | None = None) -> Path:
    torch: Any = pytest.importorskip("torch", reason="the engine's extra is not installed")
    transformers: Any = pytest.importorskip("transformers")
    tokenizers: Any = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    if kind != "no_template":
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=None if kind == "classes" else 0,
        num_labels=labels or (2 if kind == "classes" else 1),
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(directory)
    return directory


def test_each_reply_has_its_reward_alone_or_beside_others(model: LocalRewardModel) -> None:
    four, five = model([chat("four")]), model([chat("five five five")])
    assert four != five
    assert model([chat("four"), chat("five five five")]) == pytest.approx([*four, *five], abs=1e-5)
    assert model([]) == []


async def test_it_is_a_reward_source(model: LocalRewardModel) -> None:
    source = LocalReward(model, source="here")
    four, nothing = await source.rewards(PROMPT, ["four", ""])
    assert nothing == four - 1.0


async def test_a_reply_that_is_too_long_for_it_is_not_cut(model: LocalRewardModel) -> None:
    with pytest.raises(EngineFailed, match="tokens are more than its 32"):
        await LocalReward(model, source="here").rewards(PROMPT, ["four " * 40])


def test_a_directory_without_a_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"has no config\.json"):
        LocalRewardModel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EvalError, match="holds no sequence classifier"):
        LocalRewardModel(tmp_path)
    with pytest.raises(EvalError, match="has 3 classes"):
        LocalRewardModel(saved(tmp_path / "three", "padded", labels=3))
