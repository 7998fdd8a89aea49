"""Raw figures of a comparison: one JSON object an answer, written as they come."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments.files.directories import ForeignDirectoryError


@dataclass(frozen=True, slots=True)
class PeerPrompt:
    """A prompt as tokens, so that every engine reads the same."""

    id: str
    category: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """One answer of one arm; see `planner.bench.peers.protocol.Answer` for the figures.

    `group` is the first of the prompts that were asked at once; empty: this one was asked alone.
    """

    engine: str
    method: str
    round: int
    prompt: str
    category: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    seconds: float
    first_token_seconds: float
    steps: int | None
    drafted: tuple[int, ...] | None = None
    accepted: tuple[int, ...] | None = None
    draft_tokens: int | None = None
    draft_seconds: float | None = None
    token_seconds: tuple[float, ...] = ()
    group: str = ""


def begin_records(path: Path) -> None:
    """An empty file of records; one of an earlier comparison is emptied.

    Raises:
        ForeignDirectoryError: the file is something else, or it is not there and its directory holds other files.
        OSError: it cannot be written.
    """
    try:
        others = not read_records(path) and path.stat().st_size > 0
    except FileNotFoundError:
        others = any(path.parent.iterdir())
    except (ValueError, KeyError, TypeError):
        others = True
    if others:
        raise ForeignDirectoryError(
            f"{path.parent} holds something else than the records of a comparison; name another directory"
        )
    path.write_text("", encoding="utf-8")


def append_record(path: Path, record: PeerRecord) -> None:
    """Add a record to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read_records(path: Path) -> list[PeerRecord]:
    """All records of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        return list(_parsed(file))


def _parsed(lines: Iterable[str]) -> Iterable[PeerRecord]:
    for line in lines:
        content = json.loads(line)
        lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        yield PeerRecord(**{**content, **lists})
