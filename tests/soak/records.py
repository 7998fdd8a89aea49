"""What a soak has seen, a line of JSON each, in one file for each service that was asked."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class Records:
    """In a directory; lines are whole when they are in the file, whatever becomes of the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file = folder / "none"

    def begin(self) -> int:
        """Open the file of a new service; its number."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = len(self._files())
        self._file = self._folder / f"run-{number:03}.jsonl"
        self._file.touch()
        return number

    @property
    def log(self) -> Path:
        """Where the server's log of the service is kept."""
        return self._file.with_suffix(".log")

    def write(self, kind: str, **fields: Any) -> None:
        """Append a line."""
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **fields}) + "\n")

    def read(self) -> list[list[dict[str, Any]]]:
        """The lines of each service."""
        return [
            [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            for file in self._files()
        ]

    def seconds(self) -> float:
        """For how long services were asked, up to the last look at their memory."""
        looks = [[one["hours"] for one in run if one["kind"] == "memory"] for run in self.read()]
        return float(3600 * sum(run[-1] for run in looks if run))

    def met_a_fault(self) -> bool:
        """Whether the last service has ended by a fault of Triton's own, which is counted."""
        return any(one["kind"] == "fault" for one in self.read()[-1])

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("run-*.jsonl"))
