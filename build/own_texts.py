"""Texts of one's own for suffix decoding, as tokens of the target.

    {"text": "..."}                                                       a text
    {"messages": [{"role": "assistant", "content": "..."}, ...]}          OpenAI, UltraChat: the answers
    {"conversations": [{"from": "gpt", "value": "..."}, ...]}             ShareGPT: the answers

A file that does not end in `.jsonl` is one text. It may be cut anywhere to begin a draft, so what a tokenizer puts
around a text is left out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from build.targets.architecture import Architecture
from build.targets.errors import TargetError
from engine.serving.text import TextCodec
from speculators.suffix_automaton import END

_ANSWERS = ("assistant", "gpt")
_SHORTEST = 2  # tokens: one has nothing behind it
_PART = 1 << 18  # characters that are tokenised at once, which takes a hundred times their bytes


def own_texts(path: Path, target: Path) -> NDArray[np.int32]:
    """All texts of a file, with `END` behind each, and in place of tokens that the target does not know.

    Raises:
        TargetError: the file cannot be read or has no texts, a line is in no shape that is known, or the target has no
            tokenizer.
    """
    known = Architecture.from_directory(target).vocab_size
    try:
        codec = TextCodec(target, add_special_tokens=False)
        texts = (np.array([*_encoded(codec, text), END], np.int32) for text in _texts(path))
        kept = [text for text in texts if len(text) > _SHORTEST]
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path} cannot be read: {error}") from None
    if not kept:
        raise TargetError(f"{path} holds no texts of {_SHORTEST} tokens and more")
    tokens = np.concatenate(kept)
    tokens[tokens >= known] = END
    return tokens


def check_texts(path: Path) -> None:
    """What can be said of a file of texts without a tokenizer.

    Raises:
        TargetError: it cannot be read or has no texts, or a line is in no shape that is known.
    """
    try:
        if not max((sum(map(len, _parts(text))) for text in _texts(path)), default=0):
            raise TargetError(f"{path} holds no texts")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path} cannot be read: {error}") from None


def _encoded(codec: TextCodec, text: TextIO) -> Iterator[int]:
    for part in _parts(text):
        yield from codec.encode(part)


def _parts(text: TextIO) -> Iterator[str]:
    """At the end of a line if that is near."""
    while part := text.read(_PART) + text.readline(_PART):
        yield part


def _texts(path: Path) -> Iterator[TextIO]:
    if not path.is_file():  # but a pipe, which would be waited for
        raise TargetError(f"{path} is no file")
    with path.open(encoding="utf-8-sig") as file:
        if path.suffix != ".jsonl":
            yield file
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = _of_entry(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise TargetError(
                    f"{path}:{number}: expected an object with text, messages or conversations"
                ) from None
            for text in found:
                # JSON can spell halves of characters, which tokenizers refuse.
                yield io.StringIO(text.encode("utf-8", "replace").decode("utf-8"))


def _of_entry(entry: dict[str, object]) -> list[str]:
    """Raises KeyError, TypeError, ValueError or AttributeError where an entry has another shape."""
    for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in entry:
            turns = entry[key]
            if not isinstance(turns, list):
                raise TypeError
            found = [turn[content] for turn in turns if turn[role] in _ANSWERS]
            break
    else:
        found = [entry["text"]]
    if not all(isinstance(text, str) for text in found):
        raise TypeError
    return found
