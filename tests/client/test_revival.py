"""A server that Triton's own fault has ended comes back for the next test; one that has ended otherwise does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.client.triton_server import Triton, is_ready
from tests.revival import ABORTED, REVIVALS

pytestmark = pytest.mark.triton


def test_only_a_server_that_has_met_the_fault_is_started_again(start_another: Callable[[], Triton]) -> None:
    server = start_another()
    server.process.kill()
    server.process.wait()
    assert not REVIVALS.made() and not is_ready(server)
    with server.log.open("a") as log:
        log.write(f"E1128 sync.cc:105] {ABORTED}\n")
    assert REVIVALS.made() and is_ready(server)
    assert not REVIVALS.made(), "once"


def test_what_was_met_by_a_server_that_is_gone_counts_once(start_another: Callable[[], Triton]) -> None:
    server = start_another()
    with server.log.open("a") as log:
        log.write(ABORTED)
    server.kill()
    assert REVIVALS.made() and not REVIVALS.made()


RUNS: list[str] = []


def test_a_test_that_fails_meanwhile_is_run_once_more(start_another: Callable[[], Triton]) -> None:
    RUNS.append("begun")
    if len(RUNS) == 1:
        server = start_another()
        with server.log.open("a") as log:
            log.write(ABORTED)
        server.kill()
        pytest.fail("as a request to it would")
    assert len(RUNS) == 2
