"""The tokenizer of a GGUF file, rebuilt for the Hugging Face `tokenizers` library.

A GGUF file carries vocabulary, merges or scores, token types and the name of the text-splitting rule, from
which the original `tokenizer.json` follows:

 - `gpt2`: byte-level BPE. The splitting rule is a name (`tokenizer.ggml.pre`); each name below has the rule
   of the Hugging Face tokenizer that it stands for. A rule that is not listed is refused: a wrong one gives a
   model that seems to work and is subtly worse.
 - `llama`: SentencePiece BPE. Merges are recovered from the scores of the pieces: the better a piece scores,
   the earlier the merge that makes it; unknown characters fall back to byte tokens.

Tokens of type "control" become special added tokens, those of type "user-defined" ordinary added tokens. Which tokens
end generation, and what a file means that does not name them, is `build.targets.gguf_special_tokens`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.gguf_file import GgufFile
from build.targets.gguf_special_tokens import SpecialTokens, find_special_tokens
from build.targets.huggingface import chat_templates

_CHAT_TEMPLATE = "tokenizer.chat_template"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_UPPER, _TEKKEN_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}*{_TEKKEN_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}+{_TEKKEN_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Splitting:
    """A text-splitting rule: a regular expression, or GPT-2's own where it is None."""

    pattern: str | None = None
    single_digits: bool = False
    normal_form_c: bool = False
    whole_words_first: bool = False
    """A word that is itself a token is taken whole, whatever its merges would give."""
    add_bos: bool = False
    """Whether a beginning token is added where the file does not say."""


_DIGITS = _Splitting(single_digits=True)
_LLAMA3_RULE = _Splitting(_LLAMA3, whole_words_first=True, add_bos=True)
_SPLITTINGS: dict[str, _Splitting] = {
    **dict.fromkeys(("gpt-2", "mellum", "a.x-4.0"), _Splitting()),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _DIGITS),  # refact: Granite 3
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA3_RULE),
    "smaug-bpe": _Splitting(_LLAMA3),  # SmolLM3
    "tekken": _Splitting(_TEKKEN, whole_words_first=True, add_bos=True),  # Mistral Nemo
    "qwen2": _Splitting(_QWEN2, normal_form_c=True),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez", "kormo"), _Splitting(_QWEN2)),
}


class _TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Contents of the tokenizer files of a model directory, and the token ids that config.json repeats."""

    tokenizer: str
    tokenizer_config: dict[str, Any]
    special_tokens_map: dict[str, str]
    bos_token_id: int | None
    pad_token_id: int | None
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    special: SpecialTokens

    @property
    def roles(self) -> dict[str, int]:
        """Ids by role: those that the file names, and defaults that are special tokens (11 may be a comma)."""
        return {
            role: index
            for role, index in self.special.ids.items()
            if role in self.special.named or self.types[index] in (_TokenType.CONTROL, _TokenType.UNKNOWN)
        }

    def ids(self) -> dict[str, int]:
        """Id of every token in use; slots that only pad the embedding matrix are left out."""
        return {
            token: index for index, token in enumerate(self.tokens) if self.types[index] != _TokenType.UNUSED
        }

    def added(self) -> list[AddedToken]:
        """Tokens found in text before it is split, in order of id."""
        special = {*self.roles.values(), *self.special.control}
        found = []
        for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            is_special = index in special or kind in (_TokenType.CONTROL, _TokenType.UNKNOWN)
            if is_special or kind == _TokenType.USER_DEFINED:
                found.append(AddedToken(token, special=is_special, normalized=False))
        return found

    def role(self, name: str) -> str | None:
        """The token of a role."""
        index = self.special.ids.get(name)
        return None if index is None else self.tokens[index]


def read_tokenizer(file: GgufFile) -> TokenizerFiles:
    """Rebuild the tokenizer.

    Raises:
        UnsupportedModelError: the tokenizer's kind or its splitting rule is not known; the message lists
        those that are. TargetError: metadata is missing or contradicts itself.
    """
    kind = file.required("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{file.path}: tokenizer kind {kind!r} is not supported; it must be 'gpt2' (byte-level BPE) or "
            "'llama' (SentencePiece)"
        )
    if file.value("tokenizer.ggml.suppress_tokens", list, []):
        raise UnsupportedModelError(
            f"{file.path}: tokenizer.ggml.suppress_tokens is not supported; it must be absent or empty"
        )
    vocabulary = _read_vocabulary(file, kind)
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(file, vocabulary)
    else:
        tokenizer, add_bos = _sentence_piece(file, vocabulary), True
    tokenizer.add_tokens(vocabulary.added())
    add_bos = file.value("tokenizer.ggml.add_bos_token", bool, add_bos)
    add_eos = file.value("tokenizer.ggml.add_eos_token", bool, False)
    _add_template(tokenizer, vocabulary, add_bos, add_eos)
    roles = {role: vocabulary.tokens[index] for role, index in vocabulary.roles.items()}
    return TokenizerFiles(
        tokenizer=tokenizer.to_str(),
        tokenizer_config=_tokenizer_config(file, tokenizer, roles, add_bos, add_eos),
        special_tokens_map=roles,
        bos_token_id=vocabulary.special.ids.get("bos_token"),
        pad_token_id=vocabulary.special.ids.get("pad_token"),
        end_token_ids=vocabulary.special.ends,
    )


def _read_vocabulary(file: GgufFile, kind: str) -> _Vocabulary:
    tokens = file.required("tokenizer.ggml.tokens", list)
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]  # as llama.cpp names them
    types = file.value("tokenizer.ggml.token_type", list, [_TokenType.NORMAL] * len(tokens))
    if len(types) < len(tokens):
        raise TargetError(
            f"{file.path}: {len(tokens)} tokens but {len(types)} token types; there must be one for each"
        )
    if len(set(tokens)) != len(tokens):
        raise TargetError(f"{file.path}: tokenizer.ggml.tokens has the same token twice")
    return _Vocabulary(tokens, types[: len(tokens)], find_special_tokens(file, kind, tokens))


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether it adds a beginning token by default."""
    name = file.value("tokenizer.ggml.pre", str, "missing")
    if name not in _SPLITTINGS:
        raise UnsupportedModelError(
            f"{file.path}: the text-splitting rule {name!r} (tokenizer.ggml.pre) is not known; known are "
            f"{', '.join(_SPLITTINGS)}. Use the model's Hugging Face directory, which has its tokenizer.json"
        )
    rule = _SPLITTINGS[name]
    merges = [_merge(file, text) for text in file.required("tokenizer.ggml.merges", list)]
    tokenizer = _bpe(file, vocabulary, merges, ignore_merges=rule.whole_words_first)
    if rule.normal_form_c:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _splitter(rule)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule.add_bos


def _merge(file: GgufFile, text: str) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not (left and space and right):
        raise TargetError(f"{file.path}: merge {text!r} must be two tokens with a space between")
    return left, right


def _splitter(rule: _Splitting) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    return pre_tokenizers.Sequence(steps)


def _sentence_piece(file: GgufFile, vocabulary: _Vocabulary) -> Tokenizer:
    """SentencePiece BPE as Hugging Face writes it for Llama 2: spaces as U+2581, byte fallback."""
    scores = file.required("tokenizer.ggml.scores", list)
    merges = recover_merges(vocabulary.tokens, vocabulary.types, scores)
    tokenizer = _bpe(file, vocabulary, merges, byte_fallback=True, fuse_unk=True)
    prefix = file.value("tokenizer.ggml.add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
        if prefix
        else normalizers.Sequence([spaces])
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def recover_merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Merges of a SentencePiece BPE vocabulary, best first.

    SentencePiece joins at every step the neighbours whose union scores best. The same order as a list of
    merges: every way to cut a piece in two pieces, ordered by the score of the whole.
    """
    normal = {token: index for index, token in enumerate(tokens) if types[index] == _TokenType.NORMAL}
    found = []
    for token, index in normal.items():
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(normal[left], normal[right]) for left, right in cuts if left in normal and right in normal]
        found += [(-scores[index], index, left, right) for left, right in known]
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(found)]


def _bpe(
    file: GgufFile, vocabulary: _Vocabulary, merges: list[tuple[str, str]], **settings: bool
) -> Tokenizer:
    unknown = vocabulary.role("unk_token") if settings.get("byte_fallback") else None
    try:
        return Tokenizer(BPE(vocabulary.ids(), merges, unk_token=unknown, **settings))
    except Exception as error:  # the library raises bare Exception
        raise TargetError(f"{file.path}: the merges do not fit the vocabulary: {error}") from error


def _add_template(tokenizer: Tokenizer, vocabulary: _Vocabulary, add_bos: bool, add_eos: bool) -> None:
    """Let encoding put the beginning and end token around a text, where the model was trained with them."""
    before = [token for token in [vocabulary.role("bos_token")] if token and add_bos]
    after = [token for token in [vocabulary.role("eos_token")] if token and add_eos]
    if not before and not after:
        return

    def around(text: str, sequence: int) -> list[str]:
        return [f"{item}:{sequence}" for item in (*before, text, *after)]

    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(around("$A", 0)),
        pair=" ".join(around("$A", 0) + around("$B", 1)),
        special_tokens=[(token, vocabulary.tokens.index(token)) for token in before + after],
    )


def _tokenizer_config(
    file: GgufFile, tokenizer: Tokenizer, roles: Mapping[str, str], add_bos: bool, add_eos: bool
) -> dict[str, Any]:
    added = json.loads(tokenizer.to_str())["added_tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.setting("context_length", int),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        **roles,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
    }
    return {**config, **chat_templates(_templates(file))}


def _templates(file: GgufFile) -> dict[str, str]:
    """Chat templates by name; all but the default one have it in their key."""
    keys = [_CHAT_TEMPLATE, *file.keys_under(f"{_CHAT_TEMPLATE}.")]
    names = {key: key.removeprefix(_CHAT_TEMPLATE).removeprefix(".") or "default" for key in keys}
    return {name: file.required(key, str) for key, name in names.items() if file.has(key)}
