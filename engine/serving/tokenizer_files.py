"""A model's tokenizer as Transformers makes it of the files, without Transformers.

What Transformers 5 does beside reading `tokenizer.json` (`TokenizersBackend.__init__`,
`PreTrainedTokenizerBase._from_pretrained`):

 * truncation and padding that the file sets are switched off: they are a caller's choice, not the tokenizer's;
 * tokens that `tokenizer_config.json` or `special_tokens_map.json` names as special are found in text as such, also
   where `tokenizer.json` has them in its vocabulary alone; with `split_special_tokens` none is;
 * tokens that only `added_tokens_decoder`, or in the older form `added_tokens.json`, lists are added;
 * `add_bos_token` and `add_eos_token` are not read: what goes around a text is said by the post-processor in
   `tokenizer.json`.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model or engine directory.

    Raises:
        OSError: one of its files is missing or damaged.
    """
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise OSError(f"the tokenizer {path} cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        _complete(tokenizer, read_tokenizer_config(directory))
    except (ValueError, TypeError, AttributeError) as error:
        raise OSError(f"the tokenizer's configuration in {directory} cannot be read: {error}") from error
    return tokenizer


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; in the older form, without `added_tokens_decoder`, `special_tokens_map.json` has the
    last word on special tokens and `added_tokens.json` lists the added ones; in the newer one neither is read.

    Raises:
        ValueError: a file is damaged.
    """
    config = _read(directory / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    config |= _read(directory / "special_tokens_map.json")
    special = {content_of(entry) for entry in _named(config)}
    listed = {
        str(index): {"content": token, "special": token in special, "normalized": token not in special}
        for token, index in _read(directory / "added_tokens.json").items()
    }
    return {**config, "added_tokens_decoder": listed} if listed else config


def vocabulary(path: Path) -> Mapping[str, int]:
    """Ids of all tokens of a `tokenizer.json`, added ones included; empty where there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return {}
    return _vocabulary(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _vocabulary(path: Path, size: int, modified_ns: int) -> Mapping[str, int]:
    """The two numbers make it that of this very content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tokens = content["model"].get("vocab") or {}
        if isinstance(tokens, list):  # Unigram: pieces and scores, in the order of their ids
            tokens = {piece: index for index, (piece, _) in enumerate(tokens)}
        return {**tokens, **{entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def listed_tokens(config: Mapping[str, Any]) -> Mapping[str, int]:
    """Ids of the added tokens that the configuration lists, as `read_tokenizer_config` gives it.

    Raises:
        ValueError: an id is none, or an entry is neither text nor an object.
    """
    listed = config.get("added_tokens_decoder") or {}
    return {token: int(index) for index, entry in listed.items() if (token := content_of(entry))}


def content_of(token: Any) -> str | None:
    """Transformers writes a special token as its text, or as an object with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _complete(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Add what the configuration alone lists or calls special."""
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    _add_listed(tokenizer, config.get("added_tokens_decoder") or {})
    known = {entry.content for entry in tokenizer.get_added_tokens_decoder().values()}
    named = {token: entry for entry in _named(config) if (token := content_of(entry))}
    tokenizer.add_special_tokens(
        [
            _added(token, entry, special=True)
            for token, entry in named.items()
            if token not in known and tokenizer.token_to_id(token) is not None
        ]
    )


def _add_listed(tokenizer: Tokenizer, listed: Mapping[str, Any]) -> None:
    """Tokens that only `tokenizer_config.json` lists; one whose id would be another than there is left out."""
    known = {entry.content for entry in tokenizer.get_added_tokens_decoder().values()}
    for index, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        content = content_of(entry)
        if content is None or content in known:
            continue
        found = tokenizer.token_to_id(content)
        if int(index) == (tokenizer.get_vocab_size(with_added_tokens=True) if found is None else found):
            tokenizer.add_tokens([_added(content, entry)])


def _added(content: str, entry: Any, **flags: bool) -> AddedToken:
    given = entry if isinstance(entry, dict) else {}
    return AddedToken(content, **{key: given[key] for key in _FLAGS if key in given} | flags)


def _named(config: Mapping[str, Any]) -> Iterator[Any]:
    """Special tokens that the configuration names, as it writes them."""
    yield from (config.get(role) for role in ROLES)
    for key in _LISTS:
        listed = config.get(key) or []
        yield from listed.values() if isinstance(listed, dict) else listed


def _read(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}
