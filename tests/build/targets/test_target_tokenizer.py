"""Tokenizers rebuilt from GGUF metadata split, merge and mark special tokens as the originals do."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from build.targets.architecture import Architecture
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.gguf_file import GgufFile
from build.targets.gguf_tokenizer import TokenizerFiles, read_tokenizer, recover_merges
from tests.build.targets.tiny_models import (
    GgufBuilder,
    byte_level_metadata,
    byte_level_tokens,
    random_weights,
    tiny_config,
)

TEXTS = (
    "the then 1234",
    "é 🎉👩‍👩‍👧 日本語",
    "\n\n\ttab  two",
    "",
    " ",
    "<|im_start|>the<|im_end|>",
    "\x00\x7f",
)


def _read(tmp_path: Path, metadata: dict[str, Any]) -> tuple[Tokenizer, TokenizerFiles]:
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    config = tiny_config("llama", vocab_size=max(len(tokens), 1))
    builder = GgufBuilder(config, random_weights(Architecture.from_config(config)))
    builder.metadata = metadata
    files = read_tokenizer(GgufFile(builder.write(tmp_path / "tiny.gguf")))
    return Tokenizer.from_str(files.tokenizer), files


def _tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text).tokens)


def _byte_level(**changes: Any) -> dict[str, Any]:
    return {**byte_level_metadata(), **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "tekken", "gpt-2"])
def test_byte_level_text_comes_back_whole(pre: str, text: str, tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _byte_level(pre=pre))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_ids_are_those_of_the_file(tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _byte_level())
    assert [tokenizer.token_to_id(token) for token in byte_level_tokens()] == list(
        range(len(byte_level_tokens()))
    )


@pytest.mark.parametrize(
    ("pre", "digits"),
    [
        ("smollm", ["1", "2", "3"]),
        ("qwen2", ["1", "2", "3"]),
        ("llama-bpe", ["12", "3"]),
        ("gpt-2", ["12", "3"]),
    ],
)
def test_digits_are_split_by_the_named_rule(pre: str, digits: list[str], tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _byte_level(pre=pre))
    assert _tokens(tokenizer, "123") == digits


def test_merges_apply_in_order_and_within_words_only(tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _byte_level())
    assert _tokens(tokenizer, "the the") == ["t", "he", "Ġthe"]


def test_qwen_composes_accents_and_others_do_not(tmp_path: Path) -> None:
    assert _tokens(_read(tmp_path, _byte_level(pre="qwen2"))[0], "e\u0301") == ["Ã©"]
    assert _tokens(_read(tmp_path, _byte_level(pre="smollm"))[0], "e\u0301") == ["e", "Ì", "ģ"]


def test_a_word_that_is_a_token_is_taken_whole_under_llama3s_rule(tmp_path: Path) -> None:
    tokens = [*byte_level_tokens(), "dog"]  # no merge makes it
    types = [3, 3, 3] + [1] * (len(tokens) - 3)
    llama, _ = _read(tmp_path, _byte_level(pre="llama-bpe", tokens=tokens, token_type=types))
    assert _tokens(llama, "dog") == ["dog"]
    smollm, _ = _read(tmp_path, _byte_level(tokens=tokens, token_type=types))
    assert _tokens(smollm, "dog") == ["d", "o", "g"]


def test_special_tokens_are_found_in_text_and_dropped_on_request(tmp_path: Path) -> None:
    tokenizer, files = _read(tmp_path, _byte_level())
    ids = tokenizer.encode("<|im_start|>the<|im_end|>").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == "the"
    assert files.special_tokens_map == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    assert files.end_token_ids == (2, 0)
    assert files.tokenizer_config["chat_template"] == byte_level_metadata()["tokenizer.chat_template"]
    assert files.tokenizer_config["added_tokens_decoder"]["2"]["special"]


def test_user_defined_tokens_are_found_but_are_not_special(tmp_path: Path) -> None:
    tokens = [*byte_level_tokens(), "<think>", "[PAD1]"]
    types = [3, 3, 3] + [1] * (len(tokens) - 5) + [4, 5]
    tokenizer, _ = _read(tmp_path, _byte_level(tokens=tokens, token_type=types))
    ids = tokenizer.encode("the<think>").ids
    assert ids[-1] == len(tokens) - 2
    assert tokenizer.decode(ids) == "the<think>"
    assert tokenizer.token_to_id("[PAD1]") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pre": "smollm"}, ["a"]),
        ({"pre": "smollm", "add_bos_token": True}, ["<|im_start|>", "a"]),
        ({"pre": "smollm", "add_eos_token": True}, ["a", "<|im_end|>"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["a"]),
    ],
)
def test_beginning_and_end_tokens_are_added_as_the_file_says(
    changes: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    assert _tokens(_read(tmp_path, _byte_level(**changes))[0], "a") == expected


def test_llama3s_rule_adds_a_beginning_token_where_the_file_is_silent(tmp_path: Path) -> None:
    metadata = _byte_level(pre="llama-bpe")
    del metadata["tokenizer.ggml.add_bos_token"]
    tokenizer, _ = _read(tmp_path, metadata)
    assert _tokens(tokenizer, "a") == ["<|im_start|>", "a"]
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


def test_ends_of_turn_and_message_end_generation_too(tmp_path: Path) -> None:
    _, files = _read(tmp_path, _byte_level(eot_token_id=0, eom_token_id=2))
    assert files.end_token_ids == (2, 0)


def _with(*texts: str, kind: int = 3, **changes: Any) -> dict[str, Any]:
    """The vocabulary and more tokens, of a type, whose first id is 259 + the number of merges."""
    tokens = [*byte_level_tokens()[3:], *texts]
    types = [1] * (len(tokens) - len(texts)) + [kind] * len(texts)
    metadata = _byte_level(tokens=tokens, token_type=types, **changes)
    for role in ("bos", "eos", "unknown", "padding"):
        if f"{role}_token_id" not in changes:
            metadata.pop(f"tokenizer.ggml.{role}_token_id", None)
    return metadata


FIRST = len(byte_level_tokens()) - 3


@pytest.mark.parametrize(
    ("texts", "keys", "ends"),
    [
        (["</s>", "<|im_end|>"], {"eos_token_id": FIRST}, [0, 1]),
        (["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"], {"eos_token_id": FIRST}, [0, 1, 2]),
        (["<|eot_id|>", "<stop>"], {"eos_token_id": FIRST + 1}, [1, 0]),
        (["<stop>", "<|fim_pad|>", "<|file_sep|>"], {"eos_token_id": FIRST}, [0, 1, 2]),
        (["<stop>", "<a>"], {"eos_token_id": FIRST, "fim_rep_token_id": FIRST + 1}, [0, 1]),
        (["<|return|>", "<|call|>", "<|end|>"], {"eos_token_id": FIRST}, [0, 1]),
        (["<|return|>", "<|end|>"], {"eos_token_id": FIRST}, [0, 1]),
        (["<|user|>", "<a>"], {"eos_token_id": FIRST}, [0]),
    ],
)
def test_ends_are_found_by_their_text_too(
    texts: list[str], keys: dict[str, int], ends: list[int], tmp_path: Path
) -> None:
    _, files = _read(tmp_path, _with(*texts, **keys))
    assert files.end_token_ids == tuple(FIRST + index for index in ends)


def test_without_a_key_the_end_token_is_llama_cpps_default(tmp_path: Path) -> None:
    _, files = _read(tmp_path, _with("<|user|>"))
    assert files.end_token_ids == (11,)
    assert "eos_token" not in files.special_tokens_map  # it is an ordinary token, which text may hold
    metadata = _sentence_piece()
    for role in ("bos", "eos", "unknown"):
        del metadata[f"tokenizer.ggml.{role}_token_id"]
    tokenizer, files = _read(tmp_path, metadata)
    assert files.end_token_ids == (2,)
    assert _tokens(tokenizer, "the") == ["<s>", "▁the"]
    assert files.special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_an_end_of_turn_is_one_token_whatever_its_type(tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _with("</s>", "<|im_end|>", kind=1, eos_token_id=FIRST))
    assert tokenizer.encode("the<|im_end|>").ids[-1] == FIRST + 1
    assert tokenizer.decode(tokenizer.encode("the<|im_end|>").ids) == "the"


def test_templates_by_name_are_kept(tmp_path: Path) -> None:
    metadata = {**_byte_level(), "tokenizer.chat_template.tool_use": "T"}
    _, files = _read(tmp_path, metadata)
    default = byte_level_metadata()["tokenizer.chat_template"]
    assert files.tokenizer_config["chat_template"] == [
        {"name": "default", "template": default},
        {"name": "tool_use", "template": "T"},
    ]


def test_suppressed_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="suppress_tokens is not supported"):
        _read(tmp_path, _byte_level(suppress_tokens=[3]))


SENTENCE_PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
WORDS = ["▁", "t", "h", "e", "a", "▁t", "he", "▁the", "th"]


def _sentence_piece(**changes: Any) -> dict[str, Any]:
    tokens = [*SENTENCE_PIECES, *WORDS]
    settings = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(WORDS),
        "scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -9.0, 0.0, -1.0, -2.0, -3.0],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in settings.items()}


def test_sentence_pieces_merge_by_score(tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _sentence_piece())
    assert _tokens(tokenizer, "the") == ["<s>", "▁the"]
    assert _tokens(tokenizer, "athe") == ["<s>", "▁", "a", "t", "he"]  # "he" scores above "th"


def test_merges_are_recovered_best_first() -> None:
    tokens, types = ["a", "b", "ab", "aba"], [1, 1, 1, 1]
    assert recover_merges(tokens, types, [0.0, 0.0, -2.0, -1.0]) == [("ab", "a"), ("a", "b")]
    assert recover_merges(tokens, [1, 1, 4, 1], [0.0, 0.0, -2.0, -1.0]) == []


@pytest.mark.parametrize("text", ["the 🎉 é", "  two", "tab\t", "", "日本"])
def test_unknown_characters_fall_back_to_bytes_and_come_back(text: str, tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _sentence_piece())
    assert "<unk>" not in _tokens(tokenizer, text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_leading_space_follows_the_file(tmp_path: Path) -> None:
    tokenizer, _ = _read(tmp_path, _sentence_piece(add_space_prefix=False))
    assert _tokens(tokenizer, "the the") == ["<s>", "t", "he", "▁the"]
    assert tokenizer.decode(tokenizer.encode(" the").ids) == " the"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "deepseek-v3"}, "text-splitting rule 'deepseek-v3'.*is not known; known are gpt-2, mellum"),
        ({"model": "bert"}, "tokenizer kind 'bert' is not supported"),
    ],
)
def test_unknown_kinds_and_rules_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        _read(tmp_path, _byte_level(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merges": ["Ġt"]}, "merge 'Ġt' must be two tokens"),
        ({"merges": ["no pe"]}, "merges do not fit the vocabulary"),
        ({"token_type": [1]}, "tokens but 1 token types"),
        ({"eos_token_id": 9999}, r"eos_token_id is 9999; it must be below the vocabulary size"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "the same token twice"),
    ],
)
def test_metadata_that_contradicts_itself_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=message):
        _read(tmp_path, _byte_level(**changes))
