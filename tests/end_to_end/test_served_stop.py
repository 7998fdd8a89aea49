"""Stopping: what runs is finished, what comes is refused, idle connections hold nothing up. What looks healthy is."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.access import CLOSED
from deploy.health import check, main
from deploy.processes import of_session
from tests.end_to_end.calls import GrpcCaller, ServerRefusal, responses, text_inputs, whole_tokens
from tests.end_to_end.deployment import MAX_BATCH_SIZE, MAX_QUEUE_SIZE, Deployment, deployed, wait_until

pytestmark = pytest.mark.triton
LONG = 8000
MODELS = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Deployment]:
    """A server for one test."""
    with deployed(tmp_path, "byte-level") as deployment:
        yield deployment


def test_what_runs_is_finished_and_what_comes_is_refused(mine: Deployment) -> None:
    mine.server.stop_seconds = 600
    idle = http.client.HTTPConnection(mine.http)
    idle.request("GET", "/v2/health/ready")
    idle.getresponse().read()
    assert idle.sock is not None, "it stays open"
    with GrpcCaller(mine.grpc) as caller:
        given: dict[str, Any] = {"max_tokens": 1500, "min_tokens": 1500, "stream": True}
        streams = {model: caller.open(model, text_inputs("one two", **given)) for model in MODELS}
        answers = {model: responses(stream) for model, stream in streams.items()}
        begun = {model: [next(answer)] for model, answer in answers.items()}
        started = time.monotonic()
        stopping = threading.Thread(target=mine.server.stop)
        stopping.start()
        wait_until((mine.server.place.directory / "stopping").exists, "it is stopping")
        for model in MODELS:
            with pytest.raises(ServerRefusal, match=r"stopping and takes no new requests"):
                caller.infer(model, text_inputs("three", max_tokens=4))
        for model, answer in answers.items():
            assert len(whole_tokens([*begun[model], *answer])) == 1500
    stopping.join()
    assert time.monotonic() - started < mine.server.stop_seconds, "the idle connection held it up"
    idle.close()


def test_what_does_not_end_in_time_ends_with_an_error(mine: Deployment) -> None:
    mine.server.stop_seconds = 0.2
    with GrpcCaller(mine.grpc) as caller:
        inputs = text_inputs("one two", max_tokens=LONG, min_tokens=LONG, stream=True, num_draft_tokens=0)
        stream = responses(caller.open("ensemble", inputs))
        next(stream)
        mine.server.stop()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            list(stream)


def test_a_token_shows_that_it_is_well_and_ready_does_not(mine: Deployment) -> None:
    server = mine.server
    assert check(server.http, server.metrics, 60).well
    triton, stub = process(mine, "bin/tritonserver"), process(mine, "/postprocessing/1/model.py")
    os.kill(triton, signal.SIGSTOP)
    health = check(server.http, server.metrics, 1)
    assert not health.well and "no token within 1 s" in health.shown_by
    os.kill(triton, signal.SIGCONT)
    assert check(server.http, server.metrics, 60).well
    os.kill(stub, signal.SIGSTOP)
    assert "not healthy" in check(server.http, server.metrics, 60).shown_by
    os.kill(stub, signal.SIGKILL)
    assert main(["--http", server.http, "--metrics", server.metrics, "--seconds", "3"]) == 1
    assert http_get(mine.http, "/v2/health/ready") == 200, "which is why nobody may go by it"


def test_a_server_without_room_for_the_question_is_well(served: Deployment) -> None:
    server = served.server
    with GrpcCaller(served.grpc) as caller:
        endless = text_inputs("one two", max_tokens=LONG, min_tokens=LONG, stream=True, num_draft_tokens=1)
        streams = [caller.open("ensemble", endless) for _ in range(MAX_BATCH_SIZE + MAX_QUEUE_SIZE)]
        wait_until(lambda: served.running() == len(streams), "the queue is full")
        health = check(server.http, server.metrics, 60)
        assert health.well and "at work" in health.shown_by and "queue is full" in health.shown_by
        for stream in streams:
            stream.cancel()


ADMINISTRATION = (
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/ensemble/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/mine/register"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/models/ensemble/trace/setting"),
)


def test_what_administers_the_server_is_closed(served: Deployment) -> None:
    for method, path in ADMINISTRATION:
        assert http_get(served.http, path, method) == 403, path
    with GrpcCaller(served.grpc) as caller:
        for call in ("RepositoryIndex", "SystemSharedMemoryStatus", "CudaSharedMemoryStatus", "TraceSetting"):
            with pytest.raises(Exception, match="restricted"):
                _ask(caller, call)
        with pytest.raises(Exception, match="restricted"):
            _ask(caller, "LogSettings")
        assert _ask(caller, "ServerReady").ready
    options = next(
        found.arguments for found in of_session(served.server.session) if found.name == "tritonserver"
    )
    for kind in ("--http-restricted-api=", "--grpc-restricted-protocol="):
        (option,) = (part.removeprefix(kind) for part in options if part.startswith(kind))
        names, _, key = option.partition(":")
        assert set(names.split(",")) == set(CLOSED)
        assert len(key.partition("=")[2]) == 64


def process(deployment: Deployment, argument: str) -> int:
    """The number of the server's process that has an argument with this end."""
    (found,) = (
        each.pid
        for each in of_session(deployment.server.session)
        if any(part.endswith(argument) for part in each.arguments)
    )
    return found


def http_get(address: str, path: str, method: str = "GET") -> int:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None)
        return connection.getresponse().status
    finally:
        connection.close()


def _ask(caller: GrpcCaller, call: str) -> Any:
    from tritonclient.grpc import service_pb2 as messages

    names = {"TraceSetting": "TraceSettingRequest", "LogSettings": "LogSettingsRequest"}
    return getattr(caller.stub, call)(getattr(messages, names.get(call, f"{call}Request"))(), timeout=60)
