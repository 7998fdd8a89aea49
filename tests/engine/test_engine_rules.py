"""What preprocessing tells TensorRT-LLM's engines: end tokens, and a bias as wide as the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import RequestError
from engine.serving.engine_rules import EngineRules
from engine.serving.text import TextCodec
from tests.end_to_end.tiny_tokenizers import write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and, in `engine`, the configuration of an engine."""
    write_tokenizer(tmp_path, "byte-level")
    (tmp_path / "engine").mkdir()
    write(tmp_path / "engine" / "config.json", {"pretrained_config": {"vocab_size": 500}})
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, {"eos_token_id": 9}, (9, 2)),
        ({"eos_token_id": 2}, {"eos_token_id": 9}, (2,)),
        ({"eos_token_id": [1, 0]}, {"eos_token_id": 9}, (1, 0, 2)),
        ({}, {"eos_token_id": 9}, (9, 2)),
        ({"eos_token_id": None}, {"eos_token_id": None}, (2,)),
        (None, {}, (2,)),
        (None, {"eos_token_id": -1}, (2,)),
    ],
)
def test_end_tokens_are_the_models_and_the_tokenizers(
    folder: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    write(folder / "config.json", config)
    if generation is not None:
        write(folder / "generation_config.json", generation)
    assert EngineRules.read(folder, folder / "engine") == EngineRules(expected, 500)


@pytest.mark.parametrize(
    ("settings", "listed"),
    [
        ({"eos_token": "<end>"}, {"<end>": 480}),
        ({"eos_token": "<end>", "added_tokens_decoder": {"480": {"content": "<end>", "special": True}}}, {}),
        ({"eos_token": {"__type": "AddedToken", "content": "<end>", "special": True}}, {"<end>": 480}),
    ],
    ids=["older", "newer", "with flags"],
)
def test_an_end_token_may_be_listed_beside_the_tokenizer(
    folder: Path, settings: dict[str, Any], listed: dict[str, int]
) -> None:
    write(folder / "config.json", {"eos_token_id": None})
    write(folder / "tokenizer_config.json", settings)
    write(folder / "added_tokens.json", listed)
    assert EngineRules.read(folder, folder / "engine").end_ids == (480,)
    assert TextCodec(folder).encode("<end>") == [480]


def test_without_an_end_token_or_an_engine_nothing_is_served(folder: Path) -> None:
    write(folder / "tokenizer_config.json", {"bos_token": "<|im_start|>"})
    with pytest.raises(ValueError, match="eos_token_id"):
        EngineRules.read(folder, folder / "engine")
    write(folder / "config.json", {"eos_token_id": 2})
    with pytest.raises(ValueError, match="vocab_size"):
        EngineRules.read(folder, folder)


def test_an_end_token_that_is_none_is_named(folder: Path) -> None:
    write(folder / "generation_config.json", {"eos_token_id": ["</s>"]})
    with pytest.raises(
        ValueError, match=r"generation_config\.json: eos_token_id is \['</s>'\]; it must be a token id"
    ):
        EngineRules.read(folder, folder / "engine")


def test_a_bias_is_on_single_tokens(folder: Path) -> None:
    rules, codec = EngineRules((2,), 500), TextCodec(folder)
    token = codec.encode_words(["t"])[0][0]
    bias = rules.bias(codec, ["t", "t"], [1.5, -0.5])
    assert bias.shape == (500,) and bias[token] == 1.0 and np.count_nonzero(bias) == 1
    with pytest.raises(RequestError, match="must be one"):
        rules.bias(codec, ["zqxj"], [1.0])
    with pytest.raises(RequestError, match="2 embedding_bias_words but 1"):
        rules.bias(codec, ["t", "a"], [1.0])
