"""Raw figures: a line of JSON for each answer, written as they come, and taken up again by the next call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deployments.files.directories import ForeignDirectoryError
from deployments.files.writing import write_text
from speculators.windowed import Choice

RECORDS, TIMINGS, RESULT = "records.jsonl", "timings.jsonl", "result.json"

Key = tuple[str, int, int, Choice]
"""Document, context, window, choice."""


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """One answer that was drafted for.

    Attributes:
        document: its id.
        context: tokens that were asked for.
        prompt_tokens: of the document that were its prompt, a few less.
        read_tokens: of these that were not taken over from the answer before it.
        window, choice: of the drafts.
        accepted: tokens of each draft that were accepted; all drafts have their full length.
        equal: whether the answer is that of plain decoding.
        seconds: for all of it.
    """

    document: str
    context: int
    prompt_tokens: int
    read_tokens: int
    window: int
    choice: Choice
    accepted: tuple[int, ...]
    equal: bool
    seconds: float

    @property
    def key(self) -> Key:
        """What is measured once."""
        return self.document, self.context, self.window, self.choice


class Records:
    """The file of a measurement, of whose settings its first line tells.

    Args:
        directory: where it lies, or is made.
        settings: without which figures cannot stand beside each other.

    Attributes:
        found: by what is measured once.

    Raises:
        ForeignDirectoryError: the directory holds something else, or figures of other settings.
        OSError: it cannot be read or written.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self._path = directory / RECORDS
        self.found: dict[Key, WindowRecord] = {}
        if self._path.exists():
            self._take_up(settings)
            return
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ForeignDirectoryError(f"{directory} holds something else; give another --output")
        write_text(self._path, json.dumps(settings) + "\n")

    def add(self, record: WindowRecord) -> None:
        """Write a record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        self.found[record.key] = record

    def _take_up(self, settings: Mapping[str, Any]) -> None:
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have left half a line
        try:
            first, *others = [json.loads(line) for line in whole.splitlines()]
            records = [WindowRecord(**{**each, "accepted": tuple(each["accepted"])}) for each in others]
            differing = [
                f"{name} was {first.get(name)}, is {now}"
                for name, now in settings.items()
                if first.get(name) != now
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ForeignDirectoryError(f"{self._path} is not of this bench; give another --output") from None
        if differing:
            raise ForeignDirectoryError(
                f"{self._path} has figures of other settings ({'; '.join(differing)}); give another --output"
            )
        if whole != text:
            write_text(self._path, whole)
        self.found = {record.key: record for record in records}


class Timings:
    """The file of what one run timed: begun anew, since times of another hour cannot stand beside these."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / TIMINGS
        write_text(self._path, "")

    def add(self, timing: Mapping[str, Any]) -> None:
        """Write the figures of a group."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(timing) + "\n")
