"""Prompts from JSONL files in Spec-Bench's format, and a selection that is balanced over categories.

One object a line: ``{"question_id": 1, "category": "math", "turns": ["..."], "reference": []}``. Of prompts
with several turns only the first is used: a second one depends on the answer to the first, and the two arms
of a comparison must send the same text. ``prompts/drafthouse.jsonl`` holds the kit's own, twelve each of six
kinds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PromptFileError(ValueError):
    """A prompt file that cannot be used; the message names the file, the line and what would be right."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt."""

    id: str
    category: str
    text: str


def load(path: Path) -> tuple[Prompt, ...]:
    """All prompts of a file, in its order. Blank lines are skipped.

    Raises:
        PromptFileError: the file is missing, empty or not UTF-8, a line is not such an object, or an id
        occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise PromptFileError(f"{path}: cannot read prompts: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{path}: not UTF-8 text (byte {error.start})") from None
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parse(line, f"{path}:{number}")
        if prompt.id in prompts:
            raise PromptFileError(f"{path}:{number}: question_id {prompt.id} occurs a second time")
        prompts[prompt.id] = prompt
    if not prompts:
        raise PromptFileError(f"{path}: holds no prompts; expected one JSON object a line")
    return tuple(prompts.values())


def _parse(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptFileError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(entry, dict):
        raise PromptFileError(f"{where}: expected an object with question_id, category and turns")
    return Prompt(
        id=str(_field(entry, "question_id", (int, str), where)),
        category=_field(entry, "category", (str,), where),
        text=_first_turn(_field(entry, "turns", (list,), where), where),
    )


def _field(entry: dict[str, Any], name: str, types: tuple[type, ...], where: str) -> Any:
    if name not in entry:
        raise PromptFileError(
            f"{where}: {name!r} is missing; each line needs question_id, category and turns"
        )
    value = entry[name]
    if not isinstance(value, types) or isinstance(value, bool) or value == "":
        wanted = " or ".join(kind.__name__ for kind in types)
        raise PromptFileError(f"{where}: {name!r} must be a non-empty {wanted}, not {value!r}")
    return value


def _first_turn(turns: list[Any], where: str) -> str:
    if not turns or not isinstance(turns[0], str) or not turns[0].strip():
        raise PromptFileError(f"{where}: 'turns' must begin with a non-empty string")
    return turns[0]


def select(prompts: Sequence[Prompt], count: int, start: int = 0) -> tuple[Prompt, ...]:
    """`count` prompts, taken from the categories in turn; past the end it begins again.

    The order is fixed: categories as they first occur, prompts of a category as they stand in the file. A
    category that has run out is passed over, so all prompts come once before any comes twice.

    Args:
        count: how many, 0 or more.
        start: how many of that order to skip first, so that ``select(p, 4) + select(p, 4, 4) == select(p,
        8)``.
    """
    order = _round_robin(prompts)
    if not order:
        raise ValueError("there are no prompts to select from")
    return tuple(order[position % len(order)] for position in range(start, start + count))


def keep_categories(prompts: Iterable[Prompt], categories: Sequence[str]) -> tuple[Prompt, ...]:
    """The prompts of some categories; all of them if `categories` is empty.

    Raises:
        PromptFileError: a category that no prompt has.
    """
    prompts = tuple(prompts)
    known = list(dict.fromkeys(prompt.category for prompt in prompts))
    for category in categories:
        if category not in known:
            raise PromptFileError(f"no prompt has the category {category!r}; there are: {', '.join(known)}")
    return tuple(prompt for prompt in prompts if not categories or prompt.category in categories)


def _round_robin(prompts: Sequence[Prompt]) -> list[Prompt]:
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    rows = itertools.zip_longest(*by_category.values())
    return [prompt for row in rows for prompt in row if prompt is not None]
