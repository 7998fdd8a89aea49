"""Ports for servers of tests."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from random import SystemRandom

_PRIVILEGED = 1024  # those below are the administrator's
_ENOUGH = 2_000  # for one process of tests
_GIVEN: set[int] = set()


def free_ports(count: int) -> list[int]:
    """`count` free TCP ports on the loopback address, none of which is given to anybody else until the tests end.

    A server binds them seconds after they were looked up, so neither the system (to a client), nor another process of
    `pytest -n`, nor this one may give them out meanwhile. Where the system's range for clients leaves few below it,
    they are of that range.
    """
    clients = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(clients.read_text().split()[0]) if clients.is_file() else 32_768
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    below = range(max(_PRIVILEGED, first // 2) + mine, first, processes)
    chosen = below if len(below) >= _ENOUGH else (0,)  # 0: one of the system's
    found: list[int] = []
    with contextlib.ExitStack() as bound:
        while len(found) < count:
            item = bound.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                item.bind(("127.0.0.1", SystemRandom().choice(chosen)))
                port = item.getsockname()[1]
                if port not in _GIVEN:
                    found.append(port)
    _GIVEN.update(found)
    return found
