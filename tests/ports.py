"""Ports for servers of tests."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from random import SystemRandom

_PRIVILEGED = 1024  # those below are the administrator's


def free_ports(count: int) -> list[int]:
    """`count` free TCP ports on the loopback address, none of which the system gives to a client meanwhile.

    Where the system's range for clients leaves none below it, they are of that range.
    """
    clients = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(clients.read_text().split()[0]) if clients.is_file() else 32_768
    below = range(max(_PRIVILEGED, first // 2), first)
    found: list[int] = []
    with contextlib.ExitStack() as bound:
        while len(found) < count:
            item = bound.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                item.bind(("127.0.0.1", SystemRandom().choice(below) if below else 0))
                found.append(item.getsockname()[1])
    return found
