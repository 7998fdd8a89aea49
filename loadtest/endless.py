"""Requests without end, for Locust by hand: the prompts of a file over and over."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import gevent

from client import SamplingOptions, Stream
from loadtest.arrivals import poisson_arrivals
from loadtest.prompts import Prompt, select
from loadtest.records import RecordWriter, RequestRecord, epoch_ns
from loadtest.sending import Assignment


class EndlessSource:
    """Hands out prompts in balanced order, beginning elsewhere in each process.

    Args:
        worker: name of this process in the records.
        worker_index: its number among the processes, from 0.
        count_users: how many users it runs now.
        arm: name of the configuration in the records.
        prompts: what to send.
        options: how to generate.
        deadline: seconds after which a request has failed.
        arrivals_per_user: open loop: each user sends at the times of a Poisson process of this rate per
            second. As a user sends one request at a time, one that is due earlier waits, and its waiting
            counts as latency.
            None: closed loop.
        salted: each request has a `cache_salt` of its own, so that no prompt is found in the prefix cache.
        writer: keeps the records; None: they are not kept.
    """

    def __init__(
        self,
        worker: str,
        worker_index: int,
        count_users: Callable[[], int],
        arm: str,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        deadline: float,
        arrivals_per_user: float | None,
        salted: bool,
        writer: RecordWriter | None,
    ) -> None:
        self.worker = worker
        self._worker_index = worker_index
        self._count_users = count_users
        self._arm = arm
        self._prompts = prompts
        self._options = options
        self._deadline = deadline
        self._rate = arrivals_per_user
        self._salted = salted
        self._writer = writer
        self._indices = itertools.count()
        self._arrivals: dict[int, Iterator[int]] = {}

    def next(self, user: int) -> Assignment:
        """As :meth:`loadtest.users.Source.next`."""
        due_ns = self._wait_until_due(user)
        index = next(self._indices)
        start = index + 7919 * self._worker_index
        options = self._options.copy()
        if self._salted:
            options["cache_salt"] = uuid.uuid4().hex
        return Assignment(
            cell="by-hand",
            arm=self._arm,
            load=f"c{self._count_users()}",
            round=0,
            role="measured",
            index=index,
            prompt=select(self._prompts, 1, start)[0],
            due_ns=due_ns,
            options=options,
            deadline=self._deadline,
        )

    def _wait_until_due(self, user: int) -> int | None:
        if self._rate is None:
            return None
        if user not in self._arrivals:
            now = epoch_ns(time.perf_counter_ns())
            offsets = poisson_arrivals(self._rate, self._worker_index, user)
            self._arrivals[user] = (now + round(offset * 1e9) for offset in offsets)
        due_ns = next(self._arrivals[user])
        gevent.sleep(max(0.0, (due_ns - epoch_ns(time.perf_counter_ns())) / 1e9))
        return due_ns

    def started(self, assignment: Assignment, stream: Stream) -> None:
        """As :meth:`loadtest.users.Source.started`; nothing is cancelled here."""

    def was_cancelled(self, assignment: Assignment) -> bool:
        """As :meth:`loadtest.users.Source.was_cancelled`."""
        return False

    def done(self, assignment: Assignment, record: RequestRecord) -> None:
        """As :meth:`loadtest.users.Source.done`."""
        if self._writer is not None:
            self._writer.write(record)
