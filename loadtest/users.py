"""Locust users that stream from a served model: :class:`TritonGrpcUser` and :class:`TritonHttpUser`.

A user asks its source for a request, sends it, hands the record back, and tells Locust. For each request
Locust gets one event with the request latency in milliseconds, and two more where there is output, TTFT and,
in microseconds because Locust rounds, TPOT. Its page shows all three, and its last line, "Aggregated", adds
them up. Locust's figures are for watching a run; reports are computed from the raw records.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Protocol

import gevent
from locust import User, task
from locust.env import Environment

from client import DrafthouseClient, Stream
from loadtest.measures import measure
from loadtest.records import RequestRecord
from loadtest.sending import Assignment, send
from loadtest.settings import Protocol as WireProtocol

# Without a pause, users of a server that refuses at once would keep a core busy with being refused.
_PAUSE_AFTER_FAILURE_S = 0.1


class Source(Protocol):
    """Where the users of a process get their requests from."""

    worker: str
    """Name of this process in the records."""

    def next(self, user: int) -> Assignment:
        """The next request of a user; blocks until there is one and it is due."""

    def started(self, assignment: Assignment, stream: Stream) -> None:
        """A user is about to send."""

    def was_cancelled(self, assignment: Assignment) -> bool:
        """Whether the source has cancelled this request on purpose."""

    def done(self, assignment: Assignment, record: RequestRecord) -> None:
        """A request has ended; keep its record."""


class TritonUser(User):
    """A user that keeps one request running. :attr:`source` must be set before the first one starts."""

    abstract = True
    protocol: ClassVar[WireProtocol]
    source: ClassVar[Source]
    model: ClassVar[str] = "ensemble"
    _numbers: ClassVar[Any] = itertools.count()

    def on_start(self) -> None:
        """Connect."""
        self.number = next(self._numbers)
        scheme, _, address = (self.host or "").rpartition("://")
        if scheme not in ("", self.protocol):
            raise ValueError(
                f"{type(self).__name__} speaks {self.protocol} and cannot drive {self.host}; "
                f"start Locust with --host {scheme}://HOST:PORT"
            )
        self._address = address
        self._clients = {address: self._connect(address)}

    def on_stop(self) -> None:
        """Disconnect, which cancels a request under way."""
        for client in self._clients.values():
            client.close()

    @task
    def request(self) -> None:
        """Send one request."""
        assignment = self.source.next(self.number)
        address = assignment.host or self._address
        if address not in self._clients:
            self._clients[address] = self._connect(address)
        record = send(
            self._clients[address],
            assignment,
            self.source.worker,
            on_start=lambda stream: self.source.started(assignment, stream),
            was_cancelled=lambda: self.source.was_cancelled(assignment),
        )
        self.source.done(assignment, record)
        self._tell_locust(record)
        if record.failed:
            gevent.sleep(_PAUSE_AFTER_FAILURE_S)

    def _connect(self, address: str) -> DrafthouseClient:
        return DrafthouseClient(address, protocol=self.protocol, model=self.model)

    def _tell_locust(self, record: RequestRecord) -> None:
        if record.failed:
            latency = (record.ended_ns - record.sent_ns) / 1e6
            self._fire(
                self.protocol, record, latency, RuntimeError(f"{record.error}: {record.error_message}")
            )
        elif record.completed:
            measures = measure(record)
            self._fire(self.protocol, record, measures.latency)
            if measures.ttft is not None:
                self._fire("TTFT", record, measures.ttft)
            if measures.tpot is not None:
                self._fire("TPOT us", record, 1000 * measures.tpot)

    def _fire(self, kind: str, record: RequestRecord, time: float, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=record.category,
            response_time=time,
            response_length=record.output_tokens or 0,
            exception=error,
            context=self.context(),
        )


class TritonGrpcUser(TritonUser):
    """Streams over KServe v2 gRPC (``ModelStreamInfer``)."""

    protocol: ClassVar[WireProtocol] = "grpc"


class TritonHttpUser(TritonUser):
    """Streams over Triton's ``/generate_stream``."""

    protocol: ClassVar[WireProtocol] = "http"


def prepare_process() -> None:
    """Make gRPC work with Locust's greenlets. To be called once in each process, after it was forked."""
    from grpc.experimental.gevent import init_gevent

    init_gevent()


def choose_users(environment: Environment) -> None:
    """Run only the user class that speaks the protocol in the host's scheme, gRPC if there is none."""
    scheme = (environment.host or "").rpartition("://")[0] or "grpc"
    found: list[type[User]] = [
        each for each in environment.user_classes if issubclass(each, TritonUser) and each.protocol == scheme
    ]
    if not found:
        raise ValueError(f"--host must begin with grpc:// or http://, not {scheme}://")
    environment.user_classes = found
