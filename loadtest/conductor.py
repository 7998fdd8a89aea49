"""Runs the cells of a sweep one after the other inside Locust.

Locust asks a load shape once a second how many users it wants. One second is long beside a cell, so the shape
of a sweep (:mod:`loadtest.sweep_locustfile`) answers its first question only when the whole sweep is done,
and meanwhile :class:`Conductor` sets the number of users itself. For each cell:

1. bring the users to the cell's number; all of them wait;
2. have its prompts read, where the prefix cache is to be warm; read Triton's counters, open the cell;
3. hand out work until every measured request has ended (:class:`loadtest.plan.Workload`);
4. close the cell, which cancels the fillers, and wait until the last user and the server are idle;
5. read the counters again and write ``cell.json``.

Between two cells no process starts and nothing is waited for, so a change costs a few milliseconds.

The conductor and the processes with its users (:mod:`loadtest.cell_source`) talk through Locust's own messages, which a
runner without workers delivers to itself, so that one process and many run the same code. Data are what msgpack can
carry.

    conductor -> workers   OPEN    {phase, cell, opened_ns, salt}    a cell begins, or what reads its prompts
    worker -> conductor    TAKE    {phase, ticket}                   a user is free
    conductor -> worker    WORK    {ticket, work or None}            its next request; None: no more
    worker -> conductor    DONE    {index, sent, error}              it has ended, and its record is written
    conductor -> workers   CLOSE   {phase}                           it is over: cancel what runs

Phases count what is opened, so that a question asked in one is not answered with work of the next.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import time
from collections import defaultdict
from typing import Any

import gevent
from gevent.event import Event
from locust.runners import Runner

from deployments.errors import DrafthouseError
from loadtest.counters import Counters, MetricsUnavailable, difference, read_counters
from loadtest.plan import Cell, Workload
from loadtest.records import CellRecord, epoch_ns
from loadtest.run_directory import RunDirectory

OPEN = "drafthouse-open"
TAKE = "drafthouse-take"
WORK = "drafthouse-work"
DONE = "drafthouse-done"
CLOSE = "drafthouse-close"

_DRAIN_S = 30.0
_SPAWN_S = 30.0
_POLL_S = 0.02


class SweepAborted(DrafthouseError, RuntimeError):
    """The sweep cannot go on; the message says why."""


class Conductor:
    """Hands out the work of each cell and decides when it is over.

    Args:
        runner: Locust's master or local runner.
        directory: the sweep's.
    """

    def __init__(self, runner: Runner, directory: RunDirectory) -> None:
        self._runner = runner
        self._directory = directory
        self._settings = directory.read_settings()
        self._workload: Workload | None = None
        self._phase = 0
        self._moved = Event()
        self._unsent = 0
        self._failed = 0
        self._last_error: str | None = None
        self._salts: defaultdict[str, str] = defaultdict(_new_salt)
        runner.register_message(TAKE, self._on_take)
        runner.register_message(DONE, self._on_done)

    def run(self) -> None:
        """Measure every missing cell.

        Raises:
            SweepAborted: the server answers no request, or users or requests hang.
        """
        for cell in self._directory.missing():
            self._run_cell(cell)

    def _run_cell(self, cell: Cell) -> None:
        tell(event="cell", cell=cell.name, number=cell.number, requests=cell.requests)
        self._directory.prepare_cell(cell)
        self._set_users(cell.users)
        # What an arm has once read is found by its later cells, whose readings then only see to it.
        salt = self._salts[cell.arm.name] if self._settings.cache == "warm" else _new_salt()
        read = self._conduct(self._workload_of(cell, reads=True), salt, _now()) if self._reads(cell) else 0
        before = self._read_counters(cell)
        opened_ns = _now()
        sent = self._conduct(self._workload_of(cell), salt, opened_ns)
        drained = self._wait_for_idle_server(cell)
        after = self._read_counters(cell)
        self._directory.finish_cell(
            CellRecord(
                name=cell.name,
                arm=cell.arm.name,
                load=cell.load.label,
                round=cell.round,
                opened_ns=opened_ns,
                closed_ns=_now(),
                requests=read + sent,
                drained=drained,
                drafted_by_position=difference(before.drafted, after.drafted) if before and after else None,
                accepted_by_position=difference(before.accepted, after.accepted)
                if before and after
                else None,
            )
        )

    def _reads(self, cell: Cell) -> bool:
        return self._settings.cache == "warm" and not cell.is_warmup

    def _workload_of(self, cell: Cell, *, reads: bool = False) -> Workload:
        return Workload(cell, self._settings.max_tokens, self._settings.seed, reads=reads)

    def _conduct(self, workload: Workload, salt: str, opened_ns: int) -> int:
        """From opening to the last user's return; how many requests were sent."""
        cell = workload.cell
        self._workload, self._unsent, self._failed, self._last_error = workload, 0, 0, None
        self._phase += 1
        opened = {"phase": self._phase, "cell": cell.number, "opened_ns": opened_ns, "salt": salt}
        self._runner.send_message(OPEN, opened)
        while not workload.is_over:
            self._wait_for_movement(cell)
        self._check_answers(cell)
        self._runner.send_message(CLOSE, {"phase": self._phase})
        while workload.outstanding:
            self._wait_for_movement(cell)
        return workload.taken - self._unsent

    def _on_take(self, msg: Any, **_: Any) -> None:
        work = None
        if self._workload is not None and self._phase == msg.data["phase"]:
            work = self._workload.take()
        answer = {"ticket": msg.data["ticket"], "work": dataclasses.asdict(work) if work else None}
        self._runner.send_message(WORK, answer, msg.node_id)

    def _on_done(self, msg: Any, **_: Any) -> None:
        assert self._workload is not None
        done_before = self._workload.measured_done
        self._workload.done(msg.data["index"])
        self._unsent += not msg.data["sent"]
        self._failed += msg.data["error"] is not None
        if msg.data["sent"]:
            self._last_error = msg.data["error"]
        if self._workload.measured_done != done_before:
            event = "reading" if msg.data["index"] < 0 else "request"
            tell(
                event=event,
                cell=self._workload.cell.name,
                done=self._workload.measured_done,
                of=self._workload.needed,
            )
        self._moved.set()

    def _wait_for_movement(self, cell: Cell) -> None:
        """Until some request ends; each has a deadline, so that a longer silence means a lost process."""
        patience = self._settings.deadline + _SPAWN_S
        if not self._moved.wait(patience):
            raise SweepAborted(f"{cell.name}: no request ended for {patience:g} s; a Locust process is gone")
        self._moved.clear()

    def _check_answers(self, cell: Cell) -> None:
        """Stop before a cell without a server is taken for finished; it would never be measured again."""
        gone = self._last_error is not None and self._last_error.startswith("ServerUnavailable")
        if gone or (cell.is_warmup and self._failed == cell.requests):
            raise SweepAborted(
                f"{cell.name}: {self._failed} requests failed; the last one: {self._last_error}"
            )

    def _set_users(self, count: int) -> None:
        # Locust spreads stopping over time as well as starting, hence the greater of the two numbers.
        self._runner.start(count, spawn_rate=max(count, self._runner.user_count))
        give_up = time.monotonic() + _SPAWN_S
        while self._runner.user_count != count:
            if time.monotonic() > give_up:
                raise SweepAborted(
                    f"Locust runs {self._runner.user_count} users where {count} were asked for"
                )
            gevent.sleep(_POLL_S)

    def _wait_for_idle_server(self, cell: Cell) -> bool:
        """Whether the server came to rest.

        A request that was cancelled holds its slot until its next chunk, so one that waited for its prompt to be read
        is read first. Begun before that, the next cell would run beside it.
        """
        give_up = time.monotonic() + _DRAIN_S
        tell(event="draining", cell=cell.name)
        while True:
            counters = self._read_counters(cell)
            if counters is None or not counters.active_requests:
                return True
            if time.monotonic() > give_up:
                return False
            gevent.sleep(_POLL_S)

    def _read_counters(self, cell: Cell) -> Counters | None:
        url = cell.arm.metrics_url if cell.arm.host else self._settings.metrics_url
        if url is None:
            return None
        try:
            return read_counters(url)
        except MetricsUnavailable as error:
            tell(event="warning", text=str(error))
            return None


def _new_salt() -> str:
    return secrets.token_hex(8)


def _now() -> int:
    return epoch_ns(time.perf_counter_ns())


def tell(**news: object) -> None:
    """One line of JSON for the process that started the sweep."""
    try:
        sys.stdout.write(json.dumps(news) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise SystemExit("the process that started this sweep is gone") from None
