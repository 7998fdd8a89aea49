"""What goes around a prompt, and what is a special token in it, is what Transformers makes of a tokenizer's files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from engine.serving.text import TextCodec
from engine.serving.tokenizer_files import vocabulary
from tests.end_to_end.tiny_tokenizers import write_tokenizer

BEGIN, END = "<|im_start|>", "<|im_end|>"
SIZE = 480
"""Tokens of the tokenizer, the next one's id."""
TEXTS = (
    *("the target", " 2", "", f"{BEGIN}the", f"the{END}", f"{BEGIN}{BEGIN}the", f"{BEGIN}", f"a{BEGIN}b"),
    *("before the beat", "one<extra>two"),
)
_TEMPLATE = processors.TemplateProcessing
_PROCESSORS: dict[str, Any] = {
    "none": None,
    "byte level": processors.ByteLevel(trim_offsets=False),
    "begin": _TEMPLATE(single=f"{BEGIN}:0 $A:0", pair=None, special_tokens=[(BEGIN, 1)]),
    "begin and end": _TEMPLATE(
        single=f"{BEGIN}:0 $A:0 {END}:0", pair=None, special_tokens=[(BEGIN, 1), (END, 2)]
    ),
    "end": _TEMPLATE(single=f"$A:0 {END}:0", pair=None, special_tokens=[(END, 2)]),
    "two before": _TEMPLATE(
        single=f"{BEGIN}:0 {END}:0 $A:0", pair=None, special_tokens=[(BEGIN, 1), (END, 2)]
    ),
    "sequence": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            _TEMPLATE(single=f"{BEGIN}:0 $A:0", pair=None, special_tokens=[(BEGIN, 1)]),
        ]
    ),
}

_STRIPPING = {"__type": "AddedToken", "content": "re", "lstrip": True, "rstrip": True, "special": True}
_BEFORE = {"begin": 1, "begin and end": 1, "two before": 2, "sequence": 1}


def folder_of(
    path: Path, processor: str = "none", config: dict[str, Any] | None = None, **files: Any
) -> Path:
    """A tokenizer with a post-processor, and the JSON files beside it."""
    write_tokenizer(path, "byte-level")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    if _PROCESSORS[processor] is not None:
        tokenizer.post_processor = _PROCESSORS[processor]
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"bos_token": BEGIN, "eos_token": END, **(config or {})}
    for name, content in {"tokenizer_config": named, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def transformers_tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.torch
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
@pytest.mark.parametrize("processor", _PROCESSORS)
def test_prompts_are_encoded_as_transformers_encodes_them(
    processor: str, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, processor, config)
    codec, reference = TextCodec(folder), transformers_tokenizer(folder)
    for text in TEXTS:
        around = reference.encode(text)
        alone = reference.encode(text, add_special_tokens=False)
        before = _BEFORE.get(processor, 0)
        formatted = before > 0 and alone[:before] == around[:before]
        assert codec.encode(text) == (alone if formatted else around), text
        assert TextCodec(folder, add_special_tokens=False).encode(text) == alone, text


@pytest.mark.torch
@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"eos_token": "be"}, {}),
        ({"additional_special_tokens": ["be", _STRIPPING]}, {}),
        ({"extra_special_tokens": {"image_token": "be"}}, {}),
        ({"pad_token": "[PAD]"}, {}),
        ({"added_tokens_decoder": {}}, {"special_tokens_map": {"pad_token": "be"}}),
        ({}, {"special_tokens_map": {"pad_token": "be"}}),
        ({"split_special_tokens": True}, {}),
        ({}, {"added_tokens": {"<extra>": SIZE}}),
        ({"eos_token": "<extra>"}, {"added_tokens": {"<extra>": SIZE}}),
        ({"added_tokens_decoder": {}}, {"added_tokens": {"<extra>": SIZE}}),
    ],
)
def test_tokens_that_only_the_configuration_names_are_special(
    config: dict[str, Any], files: dict[str, Any], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, config=config, **files)
    codec, reference = TextCodec(folder), transformers_tokenizer(folder)
    for text in TEXTS:
        ids = reference.encode(text)
        assert codec.encode(text) == ids, text
        assert codec.decode(ids) == reference.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


@pytest.mark.torch
def test_tokens_that_only_the_configuration_lists_are_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    entry = {"content": "<extra>", "lstrip": False, "rstrip": False, "special": False, "normalized": False}
    listed = {str(size): entry, str(size + 7): {**entry, "content": "<far>"}}
    folder_of(folder, config={"added_tokens_decoder": listed})
    codec = TextCodec(folder)
    assert size in codec.encode("one<extra>two")
    assert size in transformers_tokenizer(folder).encode("one<extra>two")
    assert max(codec.encode("one<far>two")) < size


@pytest.mark.torch
def test_what_the_file_cuts_and_fills_is_left_to_the_caller(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "begin")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=12, pad_id=0)
    tokenizer.save(str(folder / "tokenizer.json"))
    codec, reference = TextCodec(folder), transformers_tokenizer(folder)
    text = "the target verifies what the draft proposes"
    assert codec.encode(text) == reference.encode(text)
    assert codec.encode("a") == [1, *codec.encode_words(["a"])[0]]


def test_a_chat_that_spells_its_beginning_gets_no_second_one(tmp_path: Path) -> None:
    codec = TextCodec(folder_of(tmp_path, "begin and end"))
    chat = f"{BEGIN}user\nthe target{END}"
    assert codec.encode(chat) == codec.encode_words([chat])[0]
    assert codec.is_formatted(chat) and not codec.is_formatted("the target")
    assert codec.encode("the target") == [1, *codec.encode_words(["the target"])[0], 2]


def test_a_word_of_the_vocabulary_has_an_id_in_every_kind_of_model(tmp_path: Path) -> None:
    for name in ("byte-level", "unigram", "word-piece"):
        path = write_tokenizer(tmp_path / name, name) / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.add_tokens([AddedToken("<extra>")])
        tokenizer.save(str(path))
        assert vocabulary(path) == tokenizer.get_vocab()
    assert vocabulary(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    "content",
    ["{", "[" * 100_000, '{"added_tokens_decoder": ["<s>"]}', '{"added_tokens_decoder": {"first": "<s>"}}'],
)
def test_a_damaged_configuration_is_told_with_its_place(content: str, tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        TextCodec(tmp_path)
