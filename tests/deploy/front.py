"""The proxy of `deploy/front` before a server, HAProxy itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.server import ServerProcess
from planner.bench.peers.environments import Unavailable
from tests.deploy.tools import DEPLOY
from tests.end_to_end.deployment import wait_until
from tests.outside.environments import debian_library, debian_program
from tests.ports import free_ports

CONFIGURATION = DEPLOY / "front" / "haproxy.cfg"
_LIBRARIES = {
    "liblua5.3.so.0": "liblua5.3-0",
    "libopentracing-c-wrapper.so.0": "libopentracing-c-wrapper0",
    "libopentracing.so.1": "libopentracing1",
}


@dataclass(frozen=True)
class Front:
    """A running proxy."""

    http: str
    grpc: str
    metrics: str


@contextmanager
def front_of(server: ServerProcess, folder: Path, unanswered: int = 32) -> Iterator[Front]:
    """The proxy in front of a server, with the kit's configuration."""
    http, grpc, metrics = free_ports(3)
    variables = {
        "FRONT_TRITON": "127.0.0.1",
        "FRONT_HTTP_PORT": str(http),
        "FRONT_GRPC_PORT": str(grpc),
        "FRONT_TRITON_HTTP_PORT": str(server.http_port),
        "FRONT_TRITON_GRPC_PORT": str(server.grpc_port),
        "FRONT_METRICS_PORT": str(metrics),
        "FRONT_UNANSWERED": str(unanswered),
        "FRONT_TRITON_METRICS_PORT": str(server.metrics_port),
    }
    try:
        program = debian_program("haproxy", "haproxy")
        libraries = [debian_library(name, package) for name, package in _LIBRARIES.items()]
    except Unavailable as reason:
        pytest.skip(str(reason))
    path = os.pathsep.join(str(found) for found in libraries if found)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-db", "-f", CONFIGURATION],
            env={**os.environ, **variables, "LD_LIBRARY_PATH": path}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: _listens(http) and _listens(grpc), "the proxy listens")
        assert process.poll() is None, (folder / "haproxy.log").read_text()
        yield Front(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{metrics}")
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()
