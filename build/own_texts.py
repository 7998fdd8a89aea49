"""Texts of one's own for suffix decoding, as tokens of the target.

    {"text": "..."}                                                       a text
    {"messages": [{"role": "assistant", "content": "..."}, ...]}          OpenAI, UltraChat: the answers
    {"conversations": [{"from": "gpt", "value": "..."}, ...]}             ShareGPT: the answers

A file that does not end in `.jsonl` is one text. It may be cut anywhere to begin a draft, so what a tokenizer puts
around a text is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from build.targets.errors import TargetError
from engine.serving.text import TextCodec

_ANSWERS = ("assistant", "gpt")
_SHORTEST = 2  # tokens: one has nothing behind it
END = -1


def own_texts(path: Path, target: Path) -> NDArray[np.int32]:
    """All texts of a file, with `END` behind each.

    Raises:
        TargetError: the file cannot be read or has no texts, a line is in no shape that is known, or the target has no
            tokenizer.
    """
    try:
        codec = TextCodec(target, add_special_tokens=False)
        tokens = [codec.encode(text) for text in _texts(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"speculation.texts: {path} cannot be read: {error}") from None
    kept = [[*text, END] for text in tokens if len(text) >= _SHORTEST]
    if not kept:
        raise TargetError(f"speculation.texts: {path} holds no texts of {_SHORTEST} tokens and more")
    return np.concatenate([np.array(text, np.int32) for text in kept])


def _texts(path: Path) -> Iterator[str]:
    if path.suffix != ".jsonl":
        yield path.read_text(encoding="utf-8")
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield from _of_entry(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if isinstance(error, UnicodeDecodeError):
                    raise
                raise TargetError(
                    f"speculation.texts: {path}:{number}: expected an object with text, messages or conversations"
                ) from None


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
