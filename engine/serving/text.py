"""Text in and out: the tokenizer behind `preprocessing` and `postprocessing`.

Streamed chunks of a request concatenate to exactly the text that decoding all its tokens at once would give. A
chunk is decoded together with tokens before it, and text that later tokens could still change is held back:
characters whose bytes are incomplete, and runs of byte-fallback tokens (`<0xE4>`), which a decoder turns into text
as a whole.
"""

import enum
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from engine.errors import RequestError
from engine.serving.tokenizer_files import load_tokenizer
from engine.stopping import Piece, check_words

_REPLACEMENT = "�"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BEGINNING = 1024  # characters; what a tokenizer puts before a text is a few special tokens
_WINDOW = 8  # tokens decoded again before a chunk; one is enough unless a decoder looks at neighbours


class TextCodec:
    """Encodes prompts and decodes output with a `tokenizer.json`."""

    def __init__(
        self, directory: Path, *, skip_special_tokens: bool = True, add_special_tokens: bool = True
    ) -> None:
        """Load the tokenizer of a model or engine directory.

        Raises:
            OSError: one of its files is missing or damaged.
        """
        self._tokenizer = load_tokenizer(directory)
        self._add_special_tokens = add_special_tokens
        self._skip_special_tokens = skip_special_tokens
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token: entry.content for token, entry in added.items() if entry.special}
        self._skipped = special if skip_special_tokens else {}
        names = sorted(self._skipped.values(), key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(map(re.escape, names))})")
        self._kinds: dict[int, _Kind] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with what the tokenizer itself puts around a text.

        A prompt that spells what comes before it, as chat templates do, is formatted already and stays as it is.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=self._add_special_tokens)
        if not _begins_twice(encoding):
            return list(encoding.ids)
        marked = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [token for token, added in marked if not added]

    def is_formatted(self, text: str) -> bool:
        """Whether a prompt spells what the tokenizer would put before it, which its beginning tells."""
        return _begins_twice(self._tokenizer.encode(text[:_BEGINNING]))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a whole output."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=self._skip_special_tokens)
        return text

    def decode_next(self, previous: Sequence[int], new: Sequence[int], *, final: bool) -> str:
        """Text that `new` tokens add to what was given out for `previous` ones."""
        window = self._window(previous)
        given = self._settled(window)
        window += [token for token in new if self._kind(token) is not _Kind.SILENT]
        whole = self.decode(window) if final else self._settled(window)
        return whole[len(given) :]

    def transcript(self) -> "OutputText":
        """The text of one output, token by token; see `engine.stopping.Transcript`."""
        return OutputText(self)

    def spellings(self, word: str) -> list[Sequence[str]]:
        """The symbols that a stop word may be met as: characters, and special tokens where it has their names."""
        if not self._skipped or not self._names.search(word):
            return [word]
        parts = self._names.split(word)  # names stand at odd places
        return [word, [symbol for n, part in enumerate(parts) for symbol in ([part] if n % 2 else part)]]

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token ids of each word; empty ones are left out."""
        return [self._tokenizer.encode(word, add_special_tokens=False).ids for word in words if word]

    def word_lists(self, words: Sequence[str], more: Sequence[int] = ()) -> NDArray[np.int32]:
        """Stop words as the contract's [2, n] tensor: tokens above end offsets, padded with 0 and -1.

        `more` are tokens that count as words of their own.
        """
        encoded = [*self.encode_words(words), *([token] for token in more)]
        tokens = [token for ids in encoded for token in ids]
        offsets = np.cumsum([len(ids) for ids in encoded]).tolist()
        width = max(1, len(tokens))
        padded = [tokens + [0] * (width - len(tokens)), offsets + [-1] * (width - len(offsets))]
        return np.array(padded, np.int32)

    def _window(self, ids: Sequence[int]) -> list[int]:
        """The last tokens that have a text, from one on at which decoding may begin.

        Many decoders treat the first token in a way of its own, so the window begins with one that has been
        given out: what is done to it is then done to both texts that are compared.
        """
        window: list[int] = []
        for token in reversed(ids):
            kind = self._kind(token)
            if kind is not _Kind.SILENT:
                window.append(token)
            if kind is _Kind.START and len(window) >= _WINDOW:
                break
        window.reverse()
        return window

    def _settled(self, ids: Sequence[int]) -> str:
        return self._settle(ids)[0]

    def _settle(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Text that no later token can change: without the run of byte tokens, or half a character, at the end.

        And whether that is all of it.
        """
        end = len(ids)
        while end and self._kind(ids[end - 1]) is _Kind.BYTE:
            end -= 1
        text = self.decode(ids[:end])
        settled = text.rstrip(_REPLACEMENT)
        return settled, end == len(ids) and len(settled) == len(text)

    def _kind(self, token: int) -> "_Kind":
        kind = self._kinds.get(token)
        if kind is None:
            kind = self._kinds[token] = self._find_kind(token)
        return kind

    def _find_kind(self, token: int) -> "_Kind":
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._skipped:
            return _Kind.SILENT
        if _BYTE_TOKEN.fullmatch(piece):
            return _Kind.BYTE
        return _Kind.INSIDE if self.decode([token]).startswith(_REPLACEMENT) else _Kind.START


class _Kind(enum.Enum):
    """How a token takes part in decoding."""

    SILENT = "not at all: a special token that is skipped, or an id without a token"
    BYTE = "a byte-fallback token, decoded together with its neighbours"
    INSIDE = "maybe the middle of a character"
    START = "begins with a whole character"


class OutputText:
    """The text of one output, token by token; see `engine.stopping.Transcript`.

    As `TextCodec.decode_next` would give it out, but with one decoding a token.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._window: list[int] = []
        self._given = 0  # characters of the window's text
        self._whole = True

    def add(self, token: int) -> Piece:
        """Take in one more token."""
        codec = self._codec
        if codec._kind(token) is _Kind.SILENT:
            name = codec._skipped.get(token)
            return Piece([name] if name else (), shown=False, whole=self._whole)
        if len(self._window) > 3 * _WINDOW:
            self._window = codec._window(self._window)
            self._given = len(codec._settle(self._window)[0])
        self._window.append(token)
        text, self._whole = codec._settle(self._window)
        new, self._given = text[self._given :], len(text)
        return Piece(new, shown=True, whole=self._whole)

    def text_of(self, given: Sequence[int], more: Sequence[int]) -> str:
        """The text that `more` tokens add to that of the tokens `given` before them, if none come after."""
        return self._codec.decode_next(given, more, final=True)


def _begins_twice(encoding: Encoding) -> bool:
    """Whether what the tokenizer has put before a text is there once more, at the beginning of the text."""
    added = next((place for place, mark in enumerate(encoding.special_tokens_mask) if not mark), 0)
    begins: bool = added > 0 and encoding.ids[added : 2 * added] == encoding.ids[:added]
    return begins


def decode_prompt(value: bytes | str, name: str = "text_input") -> str:
    """A text as it came over the wire, in the input `name`.

    Raises:
        RequestError: it is not UTF-8.
    """
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not valid UTF-8 at byte {error.start}; send text encoded as UTF-8"
        ) from None


def decode_words(values: NDArray[Any] | None, row: int, name: str) -> list[str]:
    """The words of one row of the input `name`, without the empty ones that pad it; one list may serve all rows.

    Raises:
        RequestError: there are too many, or one is not UTF-8.
    """
    if values is None or not values.size:
        return []
    lists = np.atleast_2d(values)
    found = [word for word in lists[min(row, len(lists) - 1)].tolist() if word]
    check_words(found, name, "bytes")
    return [decode_prompt(word, name) for word in found]
