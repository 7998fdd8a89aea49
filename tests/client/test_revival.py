"""A server that Triton's own fault has ended comes back for the next test; one that has ended otherwise does not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.repository import write_repository
from tests.client.triton_server import Triton, is_ready, launch
from tests.ports import free_ports
from tests.revival import ABORTED, REVIVALS

pytestmark = pytest.mark.triton


def test_only_a_server_that_has_met_the_fault_is_started_again(start_another: Callable[[], Triton]) -> None:
    server = start_another()
    server.process.kill()
    server.process.wait()
    assert not REVIVALS.made() and not is_ready(server)
    assert "Started HTTPService" in REVIVALS.ended()[server.grpc]
    with server.log.open("a") as log:
        log.write(f"E1128 sync.cc:105] {ABORTED}\n")
    assert REVIVALS.made() and is_ready(server)
    assert server.grpc not in REVIVALS.ended()
    assert not REVIVALS.made(), "once"


def test_a_server_whose_last_service_cannot_start_is_not_called_ready(tmp_path: Path) -> None:
    """It answers for a moment, and ends then."""
    write_repository(tmp_path / "repository", tmp_path / "journal")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError, match="already in use"):
        launch(tmp_path, metrics=taken.getsockname()[1])


def test_ports_are_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    mine: set[int] = set()
    for worker in ("gw0", "gw1", "gw0"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        given = free_ports(400)
        assert mine.isdisjoint(given) and len(set(given)) == 400
        mine.update(given)


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
