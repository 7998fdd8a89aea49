"""A server that is no Triton: what holds for any program is tested on one that starts at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.place import Place
from deploy.server import ServerProcess
from tests.ports import free_ports

# Answers on its ports, has a child as Triton has stubs, and shared memory; ends by SIGTERM unless it is stubborn.
_PROGRAM = """
import http.server, signal, subprocess, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"\\n")
    def log_message(self, *_):
        pass
stubborn, region, *ports = sys.argv[1:]
open("/dev/shm/" + region, "w").write("x")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def stop(*_):
    print("stopped", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn == "yes" else stop)
print("started", child.pid, flush=True)
for port in ports:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
time.sleep(600)
"""


class StandIn(ServerProcess):
    """That program."""

    def __init__(self, log: Path, *, stubborn: bool = False, stop_seconds: float = 30.0) -> None:
        """`stubborn`: SIGTERM does not end it."""
        http, grpc, metrics = free_ports(3)
        super().__init__(
            host="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics, log=log, stop_seconds=stop_seconds
        )  # fmt: skip
        self._stubborn = stubborn

    def _command(self, place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
        ports = str(self.http_port), str(self.metrics_port)
        stubborn = "yes" if self._stubborn else "no"
        command = [sys.executable, "-c", _PROGRAM, stubborn, f"{place.name}_region", *ports]
        return command, os.environ
