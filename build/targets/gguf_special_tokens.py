"""Special tokens of a GGUF file, found as llama.cpp finds them (`src/llama-vocab.cpp`, `llama_vocab::impl::load`).

Many files name one end token and end their turns with another. llama.cpp therefore looks for tokens by their text, ends
generation at every token that any known model ends with, and treats those as control tokens whatever their type says.
Where a key is missing it also has defaults, which are those of the first models of a kind.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from build.targets.errors import TargetError
from build.targets.gguf_file import GgufFile

_KEYS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
    "eot": "eot",
    "eom": "eom",
    "fim_pad": "fim_pad",
    "fim_rep": "fim_rep",
    "fim_sep": "fim_sep",
    "fim_pre": "fim_pre",
    "fim_suf": "fim_suf",
    "fim_mid": "fim_mid",
}
"""What `tokenizer.ggml.NAME_token_id` names a role."""
_OLDER_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"bos_token": 11, "eos_token": 11},
    "llama": {"bos_token": 1, "eos_token": 2, "unk_token": 0},
}

# Texts by which a role is found that no key names.
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim▁begin\uff5c>"),
        *("<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim▁hole\uff5c>"),
        *("<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim▁end\uff5c>"),
        *("<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"),
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_ENDING_ROLES = ("eos_token", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
    *("<\uff5cend▁of▁sentence\uff5c>", "[e~["),
)
# A token of the first kind is no end where, among the ends, there is one of each group of the second.
_NO_END: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("<|end|>", (("<|return|>", "<|flush|>"), ("<|call|>", "<|calls|>"))),
    ("</s>", (("<|tool_response>", "<|plamo:eos|>"),)),
)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Special tokens of a vocabulary.

    Attributes:
        ids: by role (`ROLES`), those that a key or a default names.
        named: the roles of which the file itself says it.
        ends: at which generation ends, the file's own end token first.
        control: found in text as one token, whatever type the file gives them.
    """

    ids: Mapping[str, int]
    named: Collection[str]
    ends: tuple[int, ...]
    control: frozenset[int]


def find_special_tokens(file: GgufFile, kind: str, tokens: Sequence[str]) -> SpecialTokens:
    """Read the keys and look for the texts.

    Args:
        file: the file.
        kind: `tokenizer.ggml.model`, "gpt2" or "llama".
        tokens: the vocabulary.

    Raises:
        TargetError: a key names a token outside the vocabulary.
    """
    given = _given(file, len(tokens))
    defaults = {role: index for role, index in _DEFAULTS[kind].items() if index < len(tokens)}
    ids = {**defaults, **given}
    by_text = {token: index for index, token in enumerate(tokens)}
    by_role = {
        role: min(found)
        for role, texts in _TEXTS.items()
        if role not in ids and (found := _present(by_text, texts))
    }
    by_end = _present(by_text, _ENDS)
    keyed = [{**by_role, **ids}[role] for role in _ENDING_ROLES if role in ids or role in by_role]
    ends = dict.fromkeys([*keyed, *sorted(by_end)])
    for text, groups in _NO_END:
        if all(any(by_text.get(other) in ends for other in group) for group in groups):
            ends.pop(by_text.get(text, -1), None)
    control = (set(by_end) & set(ends)) | set(by_role.values())
    roles = {role: index for role, index in ids.items() if role in ROLES}
    return SpecialTokens(roles, frozenset(given), tuple(ends), frozenset(control))


def _given(file: GgufFile, size: int) -> dict[str, int]:
    found = {}
    for keys in (_OLDER_KEYS, _KEYS):
        for role, name in keys.items():
            key = f"tokenizer.ggml.{name}_token_id"
            if file.has(key):
                found[role] = _token_id(file, key, size)
    return found


def _token_id(file: GgufFile, key: str, size: int) -> int:
    index = file.required(key, int)
    if not 0 <= index < size:
        raise TargetError(f"{file.path}: {key} is {index}; it must be below the vocabulary size {size}")
    return index


def _present(by_text: Mapping[str, int], texts: Iterable[str]) -> list[int]:
    return [by_text[text] for text in texts if text in by_text]
