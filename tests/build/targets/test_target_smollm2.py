"""The demonstration model, as `drafthouse model smollm2-135m models/smollm2-135m` makes it."""

import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer

from build.targets.prepare import prepare_target
from build.targets.weights import load_weights
from tests.conftest import SMOLLM2
from tests.reference_model import forward

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2")]

DIRECTORY = SMOLLM2
# Encodings of the original tokenizer on the Hugging Face Hub.
KNOWN = {
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "The capital of France is": [504, 3575, 282, 4649, 314],
}


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


def _json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DIRECTORY / name).read_text(encoding="utf-8"))
    return content


def _chat(content: str) -> str:
    template = jinja2.Environment().from_string(_json("tokenizer_config.json")["chat_template"])
    return template.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)


def test_shapes_and_end_token() -> None:
    weights = load_weights(DIRECTORY)
    architecture = weights.architecture
    assert (architecture.family, architecture.num_layers, architecture.num_heads) == ("llama", 30, 9)
    assert (architecture.num_kv_heads, architecture.head_dim, architecture.hidden_size) == (3, 64, 576)
    assert architecture.eos_token_ids == (
        2,
        4,
        0,
    )  # <|im_end|>, and what llama.cpp ends at: <reponame>, <|endoftext|>
    assert architecture.rope.theta == 100_000.0
    assert architecture.num_parameters == 134_515_008
    assert weights["model.embed_tokens.weight"].shape == (49_152, 576)
    assert weights["model.layers.29.self_attn.k_proj.weight"].shape == (192, 576)


@pytest.mark.parametrize("text", KNOWN)
def test_encodings_are_those_of_the_original(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(text).ids == KNOWN[text]


@pytest.mark.parametrize("text", ["🎉👩‍👩‍👧‍👦 zwj", "日本語 العربية ١٢٣", "e\u0301\u00a0\r\n\t x", "½Ⅷ", ""])
def test_text_comes_back_whole(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_chat_template_frames_turns_in_special_tokens(tokenizer: Tokenizer) -> None:
    text = _chat("Hi")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode(text).ids
    assert ids.count(1) == 3
    assert ids.count(2) == 2
    assert _json("special_tokens_map.json")["eos_token"] == "<|im_end|>"


def test_the_model_answers(tokenizer: Tokenizer) -> None:
    weights = load_weights(DIRECTORY)
    ids = tokenizer.encode(_chat("What is the capital of France?")).ids
    logits = forward(
        weights.architecture,
        weights,
        [*ids, *tokenizer.encode("The capital of France is").ids],
        dtype=np.float32,
    )
    assert tokenizer.decode([int(logits[-1].argmax())]) == " Paris"


def test_the_source_is_recognised_again() -> None:
    summary = prepare_target("smollm2-135m", DIRECTORY)
    assert summary.reused
    assert summary.gguf == DIRECTORY / "SmolLM2-135M-Instruct.Q4_1.gguf"
