"""Text in and out: the tokenizer behind `preprocessing` and `postprocessing`.

Streamed chunks of a request concatenate to exactly the text that decoding all its tokens at once would give. A
chunk is decoded together with tokens before it, and text that later tokens could still change is held back:
characters whose bytes are incomplete, and runs of byte-fallback tokens (`<0xE4>`), which a decoder turns into text
as a whole.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.request import RequestError

_REPLACEMENT = "�"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WINDOW = 32  # tokens decoded before a chunk; more than the tokens of any one character


class TextCodec:
    """Encodes prompts and decodes output with a `tokenizer.json`."""

    def __init__(self, directory: Path, *, skip_special_tokens: bool = True) -> None:
        """Load the tokenizer of a model or engine directory."""
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._skip_special_tokens = skip_special_tokens
        config_path = directory / "tokenizer_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        self._begin = self._special_id(config.get("bos_token")) if config.get("add_bos_token") else None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the begin token where the model wants one.

        A prompt that spells the begin token itself, as chat templates do, does not get a second one.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._begin is not None and ids[:1] != [self._begin]:
            return [self._begin, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a whole output."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=self._skip_special_tokens)
        return text

    def decode_next(self, previous: Sequence[int], new: Sequence[int], *, final: bool) -> str:
        """Text that `new` tokens add to what was given out for `previous` ones."""
        start = self._window_start(previous)
        window = [*previous[start:], *new]
        end = len(window) if final else self._stable_end(window)
        before = self._stable_end(window[: len(previous) - start])
        given, whole = self._settled(window[:before]), self.decode(window[:end])
        return whole[len(given) :] if final else self._settled(window[:end])[len(given) :]

    def word_lists(self, words: Sequence[str]) -> NDArray[np.int32]:
        """Stop words as the contract's [2, n] tensor: tokens above end offsets, padded with 0 and -1."""
        encoded = [self._tokenizer.encode(word, add_special_tokens=False).ids for word in words if word]
        tokens = [token for ids in encoded for token in ids]
        offsets = np.cumsum([len(ids) for ids in encoded]).tolist()
        width = max(1, len(tokens))
        padded = [tokens + [0] * (width - len(tokens)), offsets + [-1] * (width - len(offsets))]
        return np.array(padded, np.int32)

    def _special_id(self, token: str | dict[str, str] | None) -> int | None:
        content = token.get("content") if isinstance(token, dict) else token
        found: int | None = self._tokenizer.token_to_id(content) if content else None
        return found

    def _settled(self, ids: Sequence[int]) -> str:
        """Text of the tokens without an incomplete last character."""
        return self.decode(ids).rstrip(_REPLACEMENT)

    def _stable_end(self, ids: Sequence[int]) -> int:
        """Number of tokens before the run of byte-fallback tokens at the end."""
        end = len(ids)
        while end and self._is_byte(ids[end - 1]):
            end -= 1
        return end

    def _window_start(self, ids: Sequence[int]) -> int:
        """Where to start decoding: at a character's first byte, and not inside a run of byte tokens."""
        start = max(0, len(ids) - _WINDOW)
        while start and (self._is_byte(ids[start]) or self._is_byte(ids[start - 1])):
            start -= 1
        while start and (text := self.decode([ids[start - 1]])).endswith(_REPLACEMENT) | (not text):
            start -= 1
        return start

    def _is_byte(self, token: int) -> bool:
        piece = self._tokenizer.id_to_token(token)
        return piece is not None and _BYTE_TOKEN.fullmatch(piece) is not None


def decode_prompt(value: bytes | str) -> str:
    """A prompt as it came over the wire.

    Raises:
        RequestError: it is not UTF-8.
    """
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"text_input is not valid UTF-8 at byte {error.start}; send text encoded as UTF-8"
        ) from None
