"""Prompts from JSONL files, a selection that is balanced over categories, and the texts that are sent.

One object a line (or one array of them, as ShareGPT's and Alpaca's files are published), in any of the shapes in which
such files come:

    {"question_id": 1, "category": "math", "turns": ["...", "..."]}      Spec-Bench, MT-bench: the first turn
    {"messages": [{"role": "user", "content": "..."}, ...]}              OpenAI: up to the last message of the user
    {"conversations": [{"from": "human", "value": "..."}, ...]}          ShareGPT: likewise
    {"prompt": "..."}, {"instruction": "...", "input": "..."}            vLLM's, Alpaca: what the user says
    {"prompt": [{"role": "user", "content": "..."}, ...]}                TRL: as `messages`
    {"text": "..."}                                                      a text to be continued, without chat template

`question_id` (or `id`) and `category` are optional. Of `turns` only the first is used: a second one depends on the
answer to the first, and the two arms of a comparison must send the same text. A conversation brings its own answers, so
it is sent whole. ``prompts/drafthouse.jsonl`` holds the kit's own prompts, twelve each of six kinds.

A model's chat template wraps them once and before anything is timed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import ChatTemplate
from client.errors import InvalidRequest
from deployments.errors import DrafthouseError

Message = Mapping[str, Any]

_SAID = ("turns", "messages", "conversations", "prompt", "instruction")
_SHAPES = f"{', '.join(_SAID)} or text"
# ShareGPT's names of the roles.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}

_DIGITS = 12
_PLACE = f"[{'0' * _DIGITS}]"
"""What stands for the number in a prompt that is rendered but not sent yet."""


class PromptFileError(DrafthouseError, ValueError):
    """A prompt file that cannot be used; the message names the file, the line and what would be right."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt."""

    id: str
    category: str
    text: str
    """What the user says (last), or the text to be continued."""
    before: tuple[Message, ...] = ()
    """Earlier messages of the conversation."""
    is_text: bool = False
    """Whether it is a text to be continued, which no chat template wraps."""

    def rendered(self, template: ChatTemplate | None) -> str:
        """What is sent.

        Raises:
            PromptFileError: a conversation without a template, or one that the template refuses.
        """
        if self.is_text or (template is None and not self.before):
            return self.text
        if template is None:
            raise PromptFileError(
                f"prompt {self.id} is a conversation of {len(self.before) + 1} messages; it needs a chat template"
            )
        try:
            return template.render([*self.before, {"role": "user", "content": self.text}])
        except InvalidRequest as error:
            raise PromptFileError(f"prompt {self.id}: {error}") from None


def load(path: Path) -> tuple[Prompt, ...]:
    """All prompts of a file, in its order. Blank lines are skipped.

    Raises:
        PromptFileError: the file is missing, empty or not UTF-8, a line has none of the shapes, or an id
        occurs twice.
    """
    prompts: dict[str, Prompt] = {}
    for name, where, entry in _entries(path):
        prompt = _read(entry, name, where)
        if prompt.id in prompts:
            raise PromptFileError(f"{where}: the id {prompt.id} occurs a second time")
        prompts[prompt.id] = prompt
    if not prompts:
        raise PromptFileError(f"{path}: holds no prompts; expected one JSON object a line")
    return tuple(prompts.values())


def _entries(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Each entry of a file: a name, where it is, and what it says."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except OSError as error:
        raise PromptFileError(f"{path}: cannot read prompts: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if text.lstrip().startswith("["):
        for number, entry in enumerate(_parsed(text, str(path)), start=1):
            yield f"entry-{number}", f"{path}, entry {number}", entry
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line-{number}", f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise PromptFileError(f"{where}: not JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise PromptFileError(f"{where}: nests too deeply") from None


def _read(entry: Any, default: str, where: str) -> Prompt:
    if not isinstance(entry, dict):
        raise PromptFileError(f"{where}: expected an object with {_SHAPES}")
    name = "question_id" if "question_id" in entry else "id"
    found = str(_field(entry, name, (int, str), where)) if entry.get(name) is not None else default
    category = _field(entry, "category", (str,), where) if entry.get("category") is not None else None
    if "text" in entry and not any(shape in entry for shape in _SAID):
        return Prompt(found, category or "text", _words(entry["text"], "text", where), is_text=True)
    before, text = _said(entry, where)
    return Prompt(found, category or "chat", text, before)


def _said(entry: dict[str, Any], where: str) -> tuple[tuple[Message, ...], str]:
    """What the user says, and the messages before it."""
    if "turns" in entry:
        turns = _field(entry, "turns", (list,), where)
        return (), _words(turns[0] if turns else None, "turns[0]", where)
    if "messages" in entry:
        return _conversation(_field(entry, "messages", (list,), where), "role", "content", "messages", where)
    if "conversations" in entry:
        found = _field(entry, "conversations", (list,), where)
        return _conversation(found, "from", "value", "conversations", where)
    if isinstance(entry.get("prompt"), list):
        return _conversation(entry["prompt"], "role", "content", "prompt", where)
    if "prompt" in entry:
        return (), _words(entry["prompt"], "prompt", where)
    if "instruction" in entry:
        parts = [_words(entry["instruction"], "instruction", where), str(entry.get("input") or "")]
        return (), "\n\n".join(part for part in parts if part)
    raise PromptFileError(f"{where}: expected an object with {_SHAPES}")


def _conversation(
    entries: list[Any], role: str, content: str, name: str, where: str
) -> tuple[tuple[Message, ...], str]:
    """The messages up to the user's last one, which is given apart."""
    messages: list[dict[str, Any]] = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get(role), str):
            raise PromptFileError(
                f"{where}: {name}[{position}] must be an object with {role!r} and {content!r}"
            )
        text = _plain(entry.get(content))
        if text is not None and not isinstance(text, str):
            raise PromptFileError(
                f"{where}: {name}[{position}] has parts that are no text, which are not sent"
            )
        others = {key: value for key, value in entry.items() if key not in (role, content)}
        messages.append({**others, "role": _ROLES.get(entry[role], entry[role]), "content": text})
    asked = [position for position, message in enumerate(messages) if message["role"] == "user"]
    if not asked:
        raise PromptFileError(f"{where}: {name!r} has no message of the user")
    last = asked[-1]
    return tuple(messages[:last]), _words(messages[last]["content"], f"{name}[{last}]", where)


def _plain(content: Any) -> Any:
    """A message's content as one text, where it comes in parts of text (OpenAI)."""
    parts = content if isinstance(content, list) else ()
    if parts and all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return "".join(str(part.get("text") or "") for part in parts)
    return content


def _field(entry: dict[str, Any], name: str, types: tuple[type, ...], where: str) -> Any:
    value = entry[name]
    if not isinstance(value, types) or isinstance(value, bool) or value in ("", []):
        wanted = " or ".join(kind.__name__ for kind in types)
        raise PromptFileError(f"{where}: {name!r} must be a non-empty {wanted}, not {value!r}")
    return value


def _words(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PromptFileError(f"{where}: {name} must be a non-empty text, not {value!r}")
    return value


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


def render(
    prompts: Sequence[Prompt], template_directory: Path | None, *, with_numbers: bool = False
) -> tuple[Prompt, ...]:
    """The prompts as the texts that are sent.

    Args:
        prompts: as they were read.
        template_directory: whose chat template wraps them; None: they are sent as they are.
        with_numbers: leave a place for a number at the beginning (:func:`numbered`).

    Raises:
        client.errors.InvalidRequest: a prompt needs a chat template, and there is none in the directory.
        PromptFileError: a prompt cannot be rendered, or the template loses the place.
    """
    template = None
    if template_directory is not None and not all(prompt.is_text for prompt in prompts):
        template = ChatTemplate.from_directory(template_directory)
    return tuple(_rendered(prompt, template, with_numbers) for prompt in prompts)


def _rendered(prompt: Prompt, template: ChatTemplate | None, with_number: bool) -> Prompt:
    text = (_with_place(prompt) if with_number else prompt).rendered(template)
    if with_number and _PLACE not in text:
        raise PromptFileError(
            f"prompt {prompt.id}: the chat template does not show its first message, so that no number can make it new "
            "to the server's cache; measure with --cache warm"
        )
    return Prompt(prompt.id, prompt.category, text, is_text=True)


def _with_place(prompt: Prompt) -> Prompt:
    if not prompt.before:
        return dataclasses.replace(prompt, text=f"{_PLACE} {prompt.text}")
    first, *others = prompt.before
    said = first["content"]  # a message that only calls tools says nothing
    return dataclasses.replace(
        prompt, before=({**first, "content": f"{_PLACE} {said}" if said else _PLACE}, *others)
    )


def numbered(text: str, key: str) -> str:
    """A rendered prompt with a number in its place that is the key's alone."""
    digits = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10**_DIGITS
    return text.replace(_PLACE, f"[{digits:0{_DIGITS}}]", 1)
