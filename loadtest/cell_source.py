"""Gives the users of one process their requests in a sweep. The other end is :mod:`loadtest.conductor`."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

from gevent.event import AsyncResult, Event
from locust.runners import Runner

from client import SamplingOptions, Stream
from loadtest.conductor import CLOSE, DONE, OPEN, TAKE, WORK
from loadtest.plan import Cell, Work, plan_cells
from loadtest.prompts import Prompt, numbered, select
from loadtest.records import RecordWriter, RequestRecord, epoch_ns
from loadtest.run_directory import RunDirectory
from loadtest.sending import Assignment
from loadtest.servers import Server
from loadtest.settings import SweepSettings


class _OpenCell:
    """The cell being measured, or read before, as this process knows it."""

    def __init__(self, phase: int, cell: Cell, opened_ns: int, salt: str, writer: RecordWriter) -> None:
        self.phase = phase
        self.cell = cell
        self.opened_ns = opened_ns
        self.salt = salt
        self.writer = writer
        self.closed = Event()
        self.streams: dict[int, Stream] = {}


class CellSource:
    """Asks the conductor for one request after the other, and keeps the records.

    Args:
        runner: Locust's runner in this process.
        directory: where the sweep's cells are.
        prompts: what to send, rendered.
        worker: name of this process in the records.
        servers: who answers for each arm.
    """

    def __init__(
        self,
        runner: Runner,
        directory: RunDirectory,
        prompts: Sequence[Prompt],
        worker: str,
        servers: Sequence[Server],
    ) -> None:
        self.worker = worker
        self._servers = {server.arm: server for server in servers}
        self._runner = runner
        self._directory = directory
        self._settings = directory.read_settings()
        self._cells = plan_cells(self._settings)
        self._prompts = prompts
        self._tickets = itertools.count()
        self._asked: dict[int, AsyncResult] = {}
        self._open: _OpenCell | None = None
        self._is_open = Event()
        runner.register_message(OPEN, self._on_open)
        runner.register_message(WORK, self._on_work)
        runner.register_message(CLOSE, self._on_close)

    def next(self, user: int) -> Assignment:
        """As :meth:`loadtest.users.Source.next`."""
        while True:
            self._is_open.wait()
            assert self._open is not None
            current = self._open
            work = self._ask(current)
            if work is None:
                current.closed.wait()
            elif self._is_due(current, work):
                return self._assignment(current, work)
            else:
                self._tell_done(work.index, sent=False, error=None)

    def _ask(self, current: _OpenCell) -> Work | None:
        ticket, answer = next(self._tickets), AsyncResult()
        self._asked[ticket] = answer
        self._runner.send_message(TAKE, {"phase": current.phase, "ticket": ticket})
        found = answer.get()
        return None if found is None else Work(**found)

    def _is_due(self, current: _OpenCell, work: Work) -> bool:
        """Wait until `work` is due; False if the cell is over before."""
        if work.due is None:
            return not current.closed.is_set()
        wait = (_due_ns(current, work.due) - epoch_ns(time.perf_counter_ns())) / 1e9
        return not current.closed.wait(max(0.0, wait))

    def _assignment(self, current: _OpenCell, work: Work) -> Assignment:
        cell, settings = current.cell, self._settings
        prompt = select(self._prompts, 1, work.prompt)[0]
        options = generation_options(settings, cell, work)
        server, own = self._servers[cell.arm.name], f"{current.salt}-{work.index}"
        if server.cache == "salted":
            options["cache_salt"] = own
        elif server.cache == "read" and server.salts:
            # Each arm's own: of what another one has had read, its drafter may have read less.
            options["cache_salt"] = current.salt
        elif server.cache == "numbered":
            prompt = dataclasses.replace(prompt, text=numbered(prompt.text, own))
        return Assignment(
            cell=cell.name,
            arm=cell.arm.name,
            load=cell.load.label,
            round=cell.round,
            role=work.role,
            index=work.index,
            prompt=prompt,
            due_ns=None if work.due is None else _due_ns(current, work.due),
            options=options,
            deadline=settings.deadline,
            host=cell.arm.host,
        )

    def started(self, assignment: Assignment, stream: Stream) -> None:
        """As :meth:`loadtest.users.Source.started`."""
        assert self._open is not None
        self._open.streams[assignment.index] = stream

    def was_cancelled(self, assignment: Assignment) -> bool:
        """As :meth:`loadtest.users.Source.was_cancelled`."""
        return self._open is not None and self._open.closed.is_set()

    def done(self, assignment: Assignment, record: RequestRecord) -> None:
        """As :meth:`loadtest.users.Source.done`."""
        assert self._open is not None
        del self._open.streams[assignment.index]
        self._open.writer.write(record)
        error = f"{record.error}: {record.error_message}" if record.failed else None
        self._tell_done(assignment.index, sent=True, error=error)

    def _tell_done(self, index: int, *, sent: bool, error: str | None) -> None:
        self._runner.send_message(DONE, {"index": index, "sent": sent, "error": error})

    def _on_open(self, msg: Any, **_: Any) -> None:
        if self._open is not None:
            self._open.writer.close()
        cell = self._cells[msg.data["cell"]]
        writer = RecordWriter(self._directory.request_file(cell.name, self.worker))
        opened_ns, salt = msg.data["opened_ns"], msg.data["salt"]
        self._open = _OpenCell(msg.data["phase"], cell, opened_ns, salt, writer)
        self._is_open.set()

    def _on_work(self, msg: Any, **_: Any) -> None:
        self._asked.pop(msg.data["ticket"]).set(msg.data["work"])

    def _on_close(self, **_: Any) -> None:
        assert self._open is not None
        self._is_open.clear()
        self._open.closed.set()
        for stream in list(self._open.streams.values()):
            stream.cancel()


def _due_ns(current: _OpenCell, due: float) -> int:
    return current.opened_ns + round(due * 1e9)


def generation_options(settings: SweepSettings, cell: Cell, work: Work) -> SamplingOptions:
    """How to generate; the seed depends on round and request but not on the arm."""
    options = SamplingOptions(max_tokens=work.max_tokens, temperature=settings.temperature)
    if settings.temperature > 0:
        options["seed"] = settings.seed + 100_003 * (cell.round + 1) + work.index
    if settings.top_k is not None:
        options["top_k"] = settings.top_k
    if settings.top_p is not None:
        options["top_p"] = settings.top_p
    if cell.arm.num_draft_tokens is not None:
        options["num_draft_tokens"] = cell.arm.num_draft_tokens
    return options
