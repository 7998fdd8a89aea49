"""Whether a server answers: asks it for a token over HTTP, and over gRPC for an answer of any kind.

Triton's own health page does not tell: 2.51 is "ready" when every process behind it has been killed. A server
that is busy is well, though it has no room for the question: then something must be seen to get done.

A container's health check::

    python3 -m deploy.health --http http://127.0.0.1:8000 --grpc 127.0.0.1:8001 --metrics http://127.0.0.1:8002/metrics

Exit status 0 if it is well, 1 if not; a line says why.
"""

import argparse
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.grpc_door import fault
from deploy.metrics import work_done

_MODEL = "ensemble"
_QUESTION = json.dumps({"text_input": "a", "max_tokens": 1}).encode()
_FULL = "queue is full"
_MOST_BYTES = 2**20
_PAUSE_SECONDS = 0.5
# A proxy that the environment names (`http_proxy`) is for others than the server beside this process.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Health:
    """Whether a server is well, and what shows it."""

    well: bool
    shown_by: str


def check(http: str, metrics: str, seconds: float) -> Health:
    """Ask for a token; the answer, or work that the server does instead, must come within `seconds`.

    Args:
        http: address of KServe over HTTP.
        metrics: address of the page for Prometheus.
        seconds: as above.
    """
    begun = time.monotonic()
    before = work_done(metrics)
    answer = _ask(http, seconds)
    if answer.kind == "token":
        return Health(True, f"a token within {time.monotonic() - begun:.2f} s")
    while answer.kind == "busy":
        after = work_done(metrics)
        # One token may be that of the question, on its way to where it got lost.
        if before is not None and after is not None and after - before > 1:
            return Health(True, f"it is at work on other requests: {answer.told}")
        if time.monotonic() - begun > seconds:
            break
        time.sleep(_PAUSE_SECONDS)
    return Health(False, answer.told)


@dataclass(frozen=True)
class _Answer:
    kind: Literal["token", "busy", "error"]
    told: str = ""


def _ask(server: str, seconds: float) -> _Answer:
    request = urllib.request.Request(
        f"{server}/v2/models/{_MODEL}/generate", _QUESTION, {"Content-Type": "application/json"}
    )
    try:
        try:
            with _DIRECT.open(request, timeout=seconds) as answer:
                answer.read(_MOST_BYTES)
                if answer.length:  # bytes that were announced and did not come
                    raise http.client.HTTPException("its answer broke off")
        except urllib.error.HTTPError as error:
            with error:
                told = error.read(300).decode(errors="replace").strip() or f"HTTP status {error.code}"
            return _Answer("busy" if _FULL in told else "error", told)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return _Answer("busy", f"no token within {seconds:g} s")
        return _Answer("error", f"{server} does not answer: {reason}")
    return _Answer("token")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m deploy.health", description="Asks a server for a token.")
    parser.add_argument("--http", default="http://127.0.0.1:8000", help="KServe over HTTP (%(default)s)")
    parser.add_argument("--grpc", default="127.0.0.1:8001", help="KServe over gRPC (%(default)s)")
    parser.add_argument(
        "--metrics", default="http://127.0.0.1:8002/metrics", help="page for Prometheus (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long it may take (%(default)s)")
    options = parser.parse_args(arguments)
    wrong = fault(options.grpc, options.seconds)
    health = Health(False, wrong) if wrong else check(options.http, options.metrics, options.seconds)
    print(health.shown_by)
    return 0 if health.well else 1


if __name__ == "__main__":
    sys.exit(main())
