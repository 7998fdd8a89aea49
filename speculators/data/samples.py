"""Samples as they lie on disk: one JSON object a line, in the order in which they were finished.

    {"id": 17, "category": "math", "messages": [...], "tokens": [1, 9690, ...], "written": [[31, 120]],
     "greedy": true}
    {"id": 18, "category": "qa", "refused": "overlap"}

`tokens` is what the target read and wrote, token by token: text that is encoded again may be cut otherwise than it
was generated. `written` gives the ranges that the target wrote. A line that a kill cut short is dropped when the
file is opened again, and refused samples keep their line, so a run can go on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speculators.data.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, or why there is none.

    Attributes:
        id: position in the stream of tasks.
        category: kind of prompt.
        messages: the conversation as text.
        tokens: token ids of the whole.
        written: ranges ``[start, end)`` of `tokens` that the target wrote.
        greedy: whether it wrote them greedily.
        refused: why the sample must not be trained on; then the other fields are empty.
    """

    id: int
    category: str
    messages: Sequence[dict[str, str]] = ()
    tokens: Sequence[int] = ()
    written: Sequence[tuple[int, int]] = ()
    greedy: bool = False
    refused: str | None = None

    @property
    def num_written(self) -> int:
        """Tokens that the target wrote."""
        return sum(end - start for start, end in self.written)

    def line(self) -> str:
        """The sample as a line of the file."""
        content: dict[str, Any] = {"id": self.id, "category": self.category}
        if self.refused:
            content["refused"] = self.refused
        else:
            content |= {"messages": self.messages, "tokens": self.tokens}
            content |= {"written": self.written, "greedy": self.greedy}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


@dataclass(slots=True)
class SampleFile:
    """The samples that are there, and where more are appended.

    Raises:
        DataError: a line is damaged (other than the last one, if it was cut short).
    """

    path: Path
    done: set[int] = field(default_factory=set)
    num_written: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            _drop_partial_line(self.path)
            for sample in read_samples(self.path):
                self._count(sample)

    def append(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Write samples as they come, and pass them on.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                for sample in samples:
                    file.write(sample.line())
                    file.flush()
                    self._count(sample)
                    yield sample
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from error

    def _count(self, sample: Sample) -> None:
        self.done.add(sample.id)
        self.num_written += sample.num_written


def read_samples(path: Path) -> Iterator[Sample]:
    """All samples of a file, refused ones included.

    Raises:
        DataError: the file is missing, or a line is no sample.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _parse(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: samples cannot be read: {error}") from None


def content_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 over ids, tokens and ranges, whatever their order in the file."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda item: item.id):
        digest.update(json.dumps([sample.id, sample.tokens, sample.written]).encode())
    return digest.hexdigest()


def _parse(line: str, where: str) -> Sample:
    try:
        content = json.loads(line)
        if "refused" in content:
            return Sample(**content)
        ranges = [(int(start), int(end)) for start, end in content.pop("written", ())]
        sample = Sample(written=ranges, **content)
        bad = not (sample.tokens and ranges and ranges[-1][1] <= len(sample.tokens))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: not a sample as `drafthouse train` writes them: {error}") from None
    if bad:
        raise DataError(f"{where}: a sample needs tokens, and ranges in `written` that lie within them")
    return sample


def _drop_partial_line(path: Path) -> None:
    """Cut what follows the last line end: a write that a kill interrupted."""
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            os.fsync(file.fileno())
