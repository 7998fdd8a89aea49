"""Four small tokenizers, one for each way in which tokens become text, trained in memory on a few lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.trainers import Trainer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_ID = 2
TOKENIZER_NAMES = ("byte-level", "byte-fallback", "unigram", "word-piece")

FAMILY = "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}\u200d\N{BOY}"
FLAG = "\N{REGIONAL INDICATOR SYMBOL LETTER E}\N{REGIONAL INDICATOR SYMBOL LETTER U}"
CORPUS = (
    "the target verifies what the draft proposes, and the output is the target's own",
    "a token tree holds several guesses; a chain is a tree of width one",
    "one two three four five six seven eight nine ten, one two three four five",
    "for number in range(10): print(number, number ** 2)  # squares",
    "Grüße aus Köln! Ça va? Świat, çok güzel, naïve café.",
    "Привет, мир. 你好，世界。 こんにちは世界。 안녕하세요.",
    f"{FAMILY} {FLAG} \N{GRINNING FACE} \N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}",
    "x = [1.5, -2e-7]; y = {'k': None}\n\tif x:\n\t\treturn y\r\n",
)
_VOCABULARY = 480


def write_tokenizer(directory: Path, name: str) -> Path:
    """tokenizer.json and tokenizer_config.json of one of `TOKENIZER_NAMES`; the special tokens come first."""
    directory.mkdir(parents=True, exist_ok=True)
    _MAKERS[name]().save(str(directory / "tokenizer.json"))
    settings = {"bos_token": SPECIAL_TOKENS[1], "eos_token": SPECIAL_TOKENS[END_ID]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def _byte_level() -> Tokenizer:
    """As GPT-2, SmolLM, Qwen: a token is a string of bytes, maybe a part of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(tokenizer, trainers.BpeTrainer(**_common(), initial_alphabet=alphabet))


def _byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: characters outside the vocabulary become `<0xE4>` tokens, one a byte."""
    bare = Tokenizer(models.BPE())
    bare.normalizer = _spaces_marked()
    trained = json.loads(_trained(bare, trainers.BpeTrainer(**_common(), limit_alphabet=60)).to_str())[
        "model"
    ]
    pieces = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for piece in trained["vocab"] if piece not in SPECIAL_TOKENS]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.normalizer = _spaces_marked()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_special_tokens(tokenizer)


def _unigram() -> Tokenizer:
    """As T5: whole characters only, words begin with a mark, and the first mark is dropped."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.UnigramTrainer(**_common(), unk_token=SPECIAL_TOKENS[0]))


def _word_piece() -> Tokenizer:
    """As BERT: continuations are marked, spaces are put between all others, and before punctuation dropped."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, trainers.WordPieceTrainer(**_common()))


def _common() -> dict[str, object]:
    return {"vocab_size": _VOCABULARY, "special_tokens": list(SPECIAL_TOKENS), "show_progress": False}


def _trained(tokenizer: Tokenizer, trainer: Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_special_tokens(tokenizer)


def _with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def _spaces_marked() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


_MAKERS: Mapping[str, Callable[[], Tokenizer]] = dict(
    zip(TOKENIZER_NAMES, (_byte_level, _byte_fallback, _unigram, _word_piece), strict=True)
)
