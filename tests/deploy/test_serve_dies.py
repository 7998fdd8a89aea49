"""A service that is dead says so and ends, or comes back, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import find
from tests.deploy.serving import Asking, Service, served
from tests.end_to_end.deployment import wait_until

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def restarting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that is to be restarted when it dies."""
    with served(tmp_path_factory.mktemp("restarting"), on_failure="restart") as service:
        expected = service.ask(32)["text_output"]
        yield service
        assert service.ask(32)["text_output"] == expected
        assert service.end() == 130
    assert service.left_behind() == []


@pytest.mark.parametrize(
    ("victim", "number", "told"),
    [
        ("preprocessing", signal.SIGKILL, "the process of model preprocessing"),
        ("tensorrt_llm", signal.SIGSTOP, "the process of model tensorrt_llm"),
        ("tritonserver", signal.SIGKILL, "tritonserver"),
    ],
)
def test_it_is_restarted_and_requests_end(
    restarting: Service, victim: str, number: signal.Signals, told: str
) -> None:
    before = restarting.server()
    asking = Asking(restarting)
    wait_until(lambda: restarting.running() > 0, "the request runs")
    os.kill(restarting.one(victim).pid, number)
    assert asking.ended(), "nobody may wait for a dead server"
    assert asking.error is not None
    restarting.wait_until_it_answers()
    assert f"the server has died: {told}" in restarting.output
    assert all(find(process.pid) is None for process in before if process.name != "python"), "no orphans"


def test_a_killed_guard_is_as_good_as_a_killed_server(restarting: Service) -> None:
    guard = restarting.guard()
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: find(guard) is None, "the guard is gone")
    restarting.wait_until_it_answers()


def test_it_ends_with_status_1_where_it_is_not_to_be_restarted(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        asking = Asking(service)
        wait_until(lambda: service.running() > 0, "the request runs")
        os.kill(service.one("tensorrt_llm").pid, signal.SIGKILL)
        assert service.status() == 1
        assert asking.ended(5) and asking.error is not None
        assert "the process of model tensorrt_llm" in service.output
        assert "runs/triton-tiny.log" in service.output
        assert service.left_behind() == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_however_serve_ends_nothing_stays(number: signal.Signals, tmp_path: Path) -> None:
    with served(tmp_path) as service:
        processes = service.server()
        assert service.end(number) == (-number if number == signal.SIGKILL else 130)
        wait_until(lambda: all(find(each.pid) is None for each in processes), "no process is left")
        wait_until(lambda: service.left_behind() == [], "no file is left")
