"""Reads prompts whose answers the target is to write: JSONL in the shapes that data sets come in, or plain text.

    {"messages": [{"role": "user", "content": "..."}, ...]}          OpenAI, UltraChat
    {"conversations": [{"from": "human", "value": "..."}, ...]}      ShareGPT
    {"turns": ["...", ...]}                                          Spec-Bench, MT-bench
    {"prompt": "..."}, {"instruction": "...", "input": "..."}        Alpaca
    {"text": "..."}                                                  a text that the target continues

A file that does not end in `.jsonl` is plain text: its paragraphs are taken as such texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.data.errors import DataError

_USER = ("user", "human")


@dataclass(frozen=True, slots=True)
class Prompt:
    """User turns to be answered one after another, or one text to be continued.

    Attributes:
        category: the data set's own, or the kind of entry.
        turns: what the user says; the text, if there is one.
        is_text: whether it is a text.
    """

    category: str
    turns: tuple[str, ...]
    is_text: bool = False


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a line is in no shape that is known.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: training data cannot be read: {error}") from None
    prompts = list(_entries(path, content) if path.suffix == ".jsonl" else _paragraphs(content))
    if not prompts:
        raise DataError(f"{path} holds no prompts; expected one JSON object a line, or paragraphs of text")
    return prompts


def _paragraphs(content: str) -> Iterator[Prompt]:
    for text in re.split(r"\n\s*\n", content):
        if text.strip():
            yield Prompt("text", (text.strip(),), is_text=True)


def _entries(path: Path, content: str) -> Iterator[Prompt]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt = _prompt(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            prompt = None
        if prompt is None:
            raise DataError(
                f"{path}:{number}: expected an object with messages, conversations, turns, prompt, instruction or "
                "text"
            )
        yield prompt


def _prompt(entry: dict[str, Any]) -> Prompt | None:
    category = str(entry.get("category") or "conversation")
    if "messages" in entry:
        turns = [item["content"] for item in entry["messages"] if item["role"] in _USER]
    elif "conversations" in entry:
        turns = [item["value"] for item in entry["conversations"] if item["from"] in _USER]
    elif "turns" in entry:
        turns = entry["turns"]
    elif "prompt" in entry:
        turns = [entry["prompt"]]
    elif "instruction" in entry:
        turns = ["\n\n".join(part for part in (entry["instruction"], entry.get("input")) if part)]
    else:
        return Prompt("text", (entry["text"],), is_text=True) if entry["text"].strip() else None
    whole = turns and all(isinstance(turn, str) and turn.strip() for turn in turns)
    return Prompt(category, tuple(turns)) if whole else None
