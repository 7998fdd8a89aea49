"""Long documents, and which of them are read to which context."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.errors import DrafthouseError


class DocumentsError(DrafthouseError, ValueError):
    """Documents that cannot be read, or are too short."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text as tokens."""

    id: str
    tokens: tuple[int, ...]


def read_documents(path: Path, encode: Callable[[str], Sequence[int]]) -> list[Document]:
    """The documents of a file with one `{"id": ..., "text": ...}` a line, as texts to be continued.

    Raises:
        DocumentsError: a line is something else, or an id comes twice.
        OSError: the file cannot be read.
    """
    found: dict[str, Document] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DocumentsError(f"{path}: not UTF-8 text (byte {error.start})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["id"], entry["text"]
        except (ValueError, KeyError, TypeError):
            name = text = None
        if not isinstance(name, str) or not isinstance(text, str):
            raise DocumentsError(f'{path}:{number}: expected an object like {{"id": "...", "text": "..."}}')
        if name in found:
            raise DocumentsError(f"{path}:{number}: the id {name} occurs a second time")
        found[name] = Document(name, tuple(encode(text)))
    return list(found.values())


def chosen(documents: Sequence[Document], contexts: Iterable[int], count: int) -> dict[int, list[Document]]:
    """Up to `count` documents for each context that are as long, from all over the file.

    Those of a longer context are among those of every shorter one, so that as few as possible are read.

    Raises:
        DocumentsError: none is as long as a context.
    """
    taken: list[Document] = []
    by_context: dict[int, list[Document]] = {}
    for context in sorted(set(contexts), reverse=True):
        others = [each for each in documents if len(each.tokens) >= context and each not in taken]
        taken += _spread(others, count - len(taken))
        if not taken:
            longest = max((len(each.tokens) for each in documents), default=0)
            raise DocumentsError(
                f"no document has {context} tokens; the longest of {len(documents)} has {longest} (--context)"
            )
        by_context[context] = list(taken)
    return dict(sorted(by_context.items()))


def contexts_of(document: Document, by_context: Mapping[int, Sequence[Document]]) -> list[int]:
    """Those that a document is read to, in ascending order: each goes on where the one before it ended."""
    return sorted(context for context, documents in by_context.items() if document in documents)


def _spread(documents: Sequence[Document], count: int) -> list[Document]:
    count = min(count, len(documents))
    return [documents[number * len(documents) // count] for number in range(count)]
