"""The load test by hand, with all that Locust can do.

    locust -f loadtest/locustfile.py --host grpc://localhost:8001          # web page on port 8089
    locust -f loadtest/locustfile.py --host http://localhost:8000 --headless -u 8 -r 8 -t 60s
    locust -f loadtest/locustfile.py --host grpc://localhost:8001 --headless -u 64 -r 64 --processes 4
    locust -f loadtest/locustfile.py --host grpc://localhost:8001 --master
    locust -f loadtest/locustfile.py --worker --master-host MASTER         # on any number of machines

The scheme of ``--host`` selects the protocol. The options below are also fields of the web page and can be
set by environment variables (``LOADTEST_MAX_TOKENS=64``). With ``--records DIR`` every process writes its raw
records there, and the percentiles printed at the end come from them and not from Locust's rounded ones.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner
from rich.console import Console

# Locust puts the folder of this file on the import path; what is imported below lies one higher.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from client import SamplingOptions, Stream
from client.errors import ClientError
from deployments.places import KIT_PROMPTS
from loadtest.plan import poisson_arrivals
from loadtest.prompts import Prompt, keep_categories, load, render, select
from loadtest.records import RecordWriter, RequestRecord, epoch_ns, read_records
from loadtest.sending import Assignment
from loadtest.servers import describe
from loadtest.settings import Protocol
from loadtest.terminal import latency_table
from loadtest.users import (
    TritonGrpcUser,
    TritonHttpUser,
    TritonUser,
    choose_users,
    prepare_process,
)

__all__ = ["TritonGrpcUser", "TritonHttpUser"]

STARTED_NS = epoch_ns(time.perf_counter_ns())


class EndlessSource:
    """The prompts of a file over and over, in balanced order, beginning elsewhere in each process.

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


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("Drafthouse")

    def add(name: str, text: str, **details: Any) -> None:
        variable = f"LOADTEST_{name.upper().replace('-', '_')}"
        group.add_argument(f"--{name}", env_var=variable, help=text, **details)

    add("prompts", "JSONL file of prompts (see loadtest/prompts.py)", default=str(KIT_PROMPTS))
    add("categories", "Categories to use, separated by commas (default: all)", default="")
    add("chat-template", "Model directory whose chat template wraps each prompt (default: none)", default="")
    add("triton-model", "Name of the Triton model", default="ensemble")
    add("max-tokens", "Most tokens of an answer", type=int, default=128)
    add("temperature", "Sampling temperature, 0 = greedy", type=float, default=0.0)
    add("num-draft-tokens", "Cap on draft tokens, 0 = no speculation (default: the server's own)", default="")
    add(
        "cache",
        "What the server's prefix cache has of a prompt: cold, nothing; warm, what it found before",
        default="cold",
        choices=("cold", "warm"),
    )
    add("arm", "Name of this configuration in the records", default="by-hand")
    add(
        "arrivals-per-user",
        "Open loop: Poisson arrivals per second of each user (default: closed)",
        type=float,
    )
    add("deadline", "Seconds after which a request has failed", type=float, default=300.0)
    add("records", "Folder for the raw records (default: none are kept)", default="")


@events.init.add_listener  # type: ignore[untyped-decorator]
def set_up(environment: Environment, **_: Any) -> None:
    """Choose the protocol; workers run whichever users their master names."""
    gevent.sleep(
        0
    )  # lets the event loop's clock catch up with the imports, or --run-time ends that much early
    if not isinstance(environment.runner, WorkerRunner):
        choose_users(environment)
    if not isinstance(environment.runner, MasterRunner):
        prepare_process()


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: Any) -> None:
    """Take over the options, which the web page may have changed since the last start."""
    runner, asked = environment.runner, environment.parsed_options
    if asked is None or not isinstance(runner, (LocalRunner, WorkerRunner)):
        return
    worker = f"{socket.gethostname()}-{os.getpid()}"
    TritonUser.model = asked.triton_model
    TritonUser.source = EndlessSource(
        worker=worker,
        worker_index=runner.worker_index,
        count_users=lambda: runner.user_count,
        arm=asked.arm,
        prompts=_prompts(asked),
        options=_generation_options(asked),
        deadline=float(asked.deadline),
        arrivals_per_user=float(asked.arrivals_per_user) if asked.arrivals_per_user else None,
        salted=asked.cache == "cold" and _takes_salt(environment.host or "", asked.triton_model),
        writer=RecordWriter(Path(asked.records) / f"requests-{worker}.jsonl") if asked.records else None,
    )


def _takes_salt(host: str, model: str) -> bool:
    """Whether prompts can be made new to the server; it is told where they cannot."""
    scheme, _, address = host.rpartition("://")
    protocol: Protocol = "http" if scheme == "http" else "grpc"
    try:
        if "cache_salt" in describe(address, protocol, model).inputs:
            return True
    except ClientError:
        return False  # the users will say so
    logging.getLogger(__name__).warning(
        "%s takes no cache_salt: prompts come round again, and are found in its prefix cache from then on",
        host,
    )
    return False


def _prompts(asked: Namespace) -> tuple[Prompt, ...]:
    categories = tuple(filter(None, asked.categories.split(",")))
    prompts = keep_categories(load(Path(asked.prompts)), categories)
    return render(prompts, Path(asked.chat_template) if asked.chat_template else None)


def _generation_options(asked: Namespace) -> SamplingOptions:
    options = SamplingOptions(max_tokens=int(asked.max_tokens), temperature=float(asked.temperature))
    if asked.num_draft_tokens:
        options["num_draft_tokens"] = int(asked.num_draft_tokens)
    return options


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def report(environment: Environment, **_: Any) -> None:
    """Print latencies from the raw records of this run, as far as they lie on this machine."""
    asked = environment.parsed_options
    if asked is None or not asked.records or isinstance(environment.runner, WorkerRunner):
        return
    files = sorted(Path(asked.records).glob("requests-*.jsonl"))
    records = [record for file in files for record in read_records(file) if record.sent_ns >= STARTED_NS]
    Console().print(latency_table(records))
