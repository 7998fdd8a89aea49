"""The folder of one sweep: what was asked, what is done, where everything lies.

    sweep.json                     settings, their digest, provenance
    servers.json                   who answered for each arm, and what its prefix cache is to hold
    cells/003-c1-none/
        requests-<worker>.jsonl    raw records, one line a request
        cell.json                  written last: the cell is finished
    plots/*.png  report.json  report.html

A cell counts as finished once it has its ``cell.json``. Whatever an interrupted cell has written stays until
the sweep is resumed, which measures that cell anew.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from deployments.errors import DrafthouseError
from deployments.files.writing import write_json, write_text
from loadtest.plan import Cell, plan_cells
from loadtest.records import CellRecord, RecordError, RequestRecord, read_records
from loadtest.servers import Server
from loadtest.settings import SweepSettings

_LOCK = ".lock"
Parsed = TypeVar("Parsed")


class RunDirectoryError(DrafthouseError, RuntimeError):
    """The folder cannot be used for this sweep; the message says why and what to do."""


class RunDirectory:
    """Reads and writes the folder of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sweep_file = path / "sweep.json"
        self.servers_file = path / "servers.json"
        self.cells = path / "cells"
        self.plots = path / "plots"
        self.report_json = path / "report.json"
        self.report_html = path / "report.html"

    def begin(self, settings: SweepSettings, provenance: Mapping[str, Any]) -> None:
        """Start a sweep here, or take up the one that was interrupted here; for whoever has it locked.

        Raises:
            RunDirectoryError: the folder holds records of other settings, or other files.
        """
        self._check_ours()
        if any(self.cells.glob("*/cell.json")):
            self._check_same(settings)
        else:  # if it was begun, nothing came of it
            self.servers_file.unlink(missing_ok=True)
        document = {
            "digest": settings.digest(),
            "settings": settings.model_dump(mode="json"),
            "provenance": dict(provenance),
        }
        write_json(self.sweep_file, document, indent=1)

    def note_servers(self, servers: Sequence[Server]) -> None:
        """Write down who answers for the arms.

        Raises:
            RunDirectoryError: it is not who answered when the sweep was begun.
        """
        before = self.read_servers()
        if before and before != list(servers):
            differing = [new.arm for old, new in zip(before, servers, strict=True) if old != new]
            raise RunDirectoryError(
                f"{self.path} was begun with other servers, or with their prefix caches in another state "
                f"({', '.join(differing)}); give another directory, or delete this one"
            )
        document = [server.model_dump(mode="json") for server in servers]
        write_json(self.servers_file, document, indent=1)

    def read_servers(self) -> list[Server]:
        """Who answered for each arm; empty before anybody was asked."""
        if not self.servers_file.exists():
            return []
        return _parsed(
            self.servers_file, lambda text: [Server.model_validate(entry) for entry in json.loads(text)]
        )

    def _check_ours(self) -> None:
        if self.sweep_file.exists():
            self._document()
        elif self.path.exists() and any(entry.name != _LOCK for entry in self.path.iterdir()):
            raise RunDirectoryError(
                f"{self.path} is not empty and not a sweep; give an empty or new directory"
            )

    def _check_same(self, settings: SweepSettings) -> None:
        old, new = self.read_settings().model_dump(mode="json"), settings.model_dump(mode="json")
        if self._document()["digest"] == settings.digest():
            return
        differing = [name for name in new if new[name] != old[name]] or ["the content of the prompts file"]
        raise RunDirectoryError(
            f"{self.path} holds a sweep with other settings (different: {', '.join(differing)}); "
            "give another directory, or delete this one"
        )

    def _document(self) -> dict[str, Any]:
        try:
            document = json.loads(self.sweep_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunDirectoryError(
                f"{self.path} is not the directory of a sweep: no sweep.json in it"
            ) from None
        except ValueError:
            document = None
        if not isinstance(document, dict) or not {"digest", "settings", "provenance"} <= document.keys():
            raise RunDirectoryError(
                f"{self.sweep_file} is not that of a load test; give an empty or new directory"
            )
        return document

    def read_settings(self) -> SweepSettings:
        """The settings that the sweep was begun with.

        Raises:
            RunDirectoryError: the folder holds no sweep, or one of another release.
        """
        settings = self._document()["settings"]
        return _parsed(self.sweep_file, lambda _: SweepSettings.model_validate(settings))

    def read_provenance(self) -> dict[str, Any]:
        """What produced the records: versions, host, commit, arguments."""
        provenance: dict[str, Any] = self._document()["provenance"]
        return provenance

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from measuring into this folder, which is made if it is not there.

        Raises:
            RunDirectoryError: another one does, or the folder holds other files.
        """
        self._check_ours()  # before there is a file of ours among them
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunDirectoryError(f"{self.path}: another process is measuring into it") from None
            yield

    def missing(self) -> tuple[Cell, ...]:
        """Cells still to be measured.

        Warm-up is repeated whenever anything is missing, for the server may be new.
        """
        cells = plan_cells(self.read_settings())
        missing = [cell for cell in cells if not cell.is_warmup and not self._cell_file(cell.name).exists()]
        return tuple(cell for cell in cells if missing and (cell.is_warmup or cell in missing))

    def prepare_cell(self, cell: Cell) -> None:
        """Make room for a cell's records, dropping those of an interrupted attempt."""
        shutil.rmtree(self.cells / cell.name, ignore_errors=True)
        (self.cells / cell.name).mkdir(parents=True)

    def request_file(self, cell_name: str, worker: str) -> Path:
        """Where one worker writes its records of a cell."""
        return self.cells / cell_name / f"requests-{worker}.jsonl"

    def finish_cell(self, record: CellRecord) -> None:
        """Mark a cell as finished."""
        write_text(self._cell_file(record.name), record.to_json())

    def finished(self) -> list[tuple[CellRecord, list[RequestRecord]]]:
        """All finished cells but the warm-up, in the order of the sweep, with their records by index.

        Raises:
            RecordError: a record is unreadable, or some are missing.
            RunDirectoryError: what is said of a cell is unreadable.
        """
        cells = [cell for cell in plan_cells(self.read_settings()) if not cell.is_warmup]
        return [self.read_cell(cell.name) for cell in cells if self._cell_file(cell.name).exists()]

    def read_cell(self, name: str) -> tuple[CellRecord, list[RequestRecord]]:
        """One finished cell and its records by index."""
        cell = _parsed(self._cell_file(name), CellRecord.from_json)
        files = sorted((self.cells / name).glob("requests-*.jsonl"))
        records = sorted(
            (record for file in files for record in read_records(file)), key=lambda record: record.index
        )
        if len(records) != cell.requests:
            raise RecordError(
                f"{self.cells / name}: {len(records)} records, but the cell sent {cell.requests} requests"
            )
        return cell, records

    def _cell_file(self, name: str) -> Path:
        return self.cells / name / "cell.json"


def _parsed(path: Path, parse: Callable[[str], Parsed]) -> Parsed:
    """What a file of a sweep says.

    Raises:
        RunDirectoryError: it is damaged, or another release has written it.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RunDirectoryError(
            f"{path} is damaged or of another release; give another directory, or delete this one"
        ) from None
