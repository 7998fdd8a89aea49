"""Raw figures of a comparison: one JSON object an answer, written as they come."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments.files.directories import ForeignDirectoryError

RECORDS, RESULT = "records.jsonl", "result.json"


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


def check_records(directory: Path) -> None:
    """Do nothing if a directory is free, empty, or that of an earlier comparison.

    Raises:
        ForeignDirectoryError: it is something else.
    """
    path = directory / RECORDS
    try:
        others = not read_records(path) and path.stat().st_size > 0
    except FileNotFoundError:
        others = directory.is_dir() and any(directory.iterdir())
    except NotADirectoryError:
        raise ForeignDirectoryError(f"{directory} is a file; name another directory") from None
    except (ValueError, KeyError, TypeError):
        others = True
    if others:
        raise ForeignDirectoryError(
            f"{directory} holds something else than the records of a comparison; name another directory"
        )


def begin_records(directory: Path) -> Path:
    """An empty file of records, which is returned; an earlier comparison's are emptied, and its result removed.

    Raises:
        ForeignDirectoryError: the directory is something else.
        OSError: it cannot be written.
    """
    check_records(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULT).unlink(missing_ok=True)
    path = directory / RECORDS
    path.write_text("", encoding="utf-8")
    return path


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
