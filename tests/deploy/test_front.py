"""The way in front of Triton: HAProxy itself with the kit's configuration, before a real Triton 2.51."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import DrafthouseClient, errors
from deploy.server import ServerDied
from deploy.watch import Watch
from tests.deploy.front import Front, front_of
from tests.end_to_end.calls import GrpcCaller, ServerRefusal, responses, text_inputs, whole_text
from tests.end_to_end.deployment import MAX_BATCH_SIZE, MAX_QUEUE_SIZE, Deployment, deployed, wait_until

pytestmark = [pytest.mark.triton, pytest.mark.outside]
GENERATE = "/v2/models/ensemble/generate"
OPEN = (
    *(GENERATE, f"{GENERATE}_stream", "/v2/health/ready", "/v2/health/live", "/v2"),
    *("/v2/models/ensemble", "/v2/models/ensemble/config", "/v2/models/ensemble/versions/1/ready"),
)
SHUT = (
    *(
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/repository/index",
        "/v2/systemsharedmemory/status",
        "/metrics",
    ),
    *("/v2/cudasharedmemory/region/x/register", "/v2/models/ensemble/trace/setting", "/v2/models/../logging"),
)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("behind"), "byte-level") as deployment:
        yield deployment


@pytest.fixture(scope="module")
def front(behind: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with front_of(behind.server, tmp_path_factory.mktemp("front")) as front:
        yield front


def ask(address: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def question(**fields: Any) -> bytes:
    return json.dumps({"text_input": "one two", "max_tokens": 4, **fields}).encode()


def in_pieces(address: str, count: int) -> bytes:
    """The answer to a question whose body comes in pieces of a byte, with `count` blanks at its end."""
    host, _, port = address.partition(":")
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in question())
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(head.encode() + pieces)
            for _ in range(0, count, 10_000):
                connection.sendall(b"1\r\n \r\n" * 10_000)
            connection.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # it was refused meanwhile
        try:
            return connection.recv(64)
        except OSError:
            return b""


def test_a_body_in_a_million_pieces_reaches_triton_in_one(front: Front, behind: Deployment) -> None:
    assert in_pieces(front.http, 900_000).startswith(b"HTTP/1.1 200")
    assert in_pieces(front.http, 2_000_000).startswith(b"HTTP/1.1 413")
    assert ask(front.http, GENERATE, question())[0] == 200


def test_without_it_they_end_triton(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Or this file would prove nothing; a release that has mended it may leave the front out."""
    with deployed(tmp_path_factory.mktemp("bare"), "byte-level") as bare:
        watch = Watch(bare.server, 60)
        assert in_pieces(bare.http, 2_000_000) == b""
        with pytest.raises(ServerDied, match="tritonserver"):
            watch.wait()
        bare.server.kill()


def test_only_what_clients_need_is_passed_on(front: Front, behind: Deployment) -> None:
    for path in OPEN:
        assert ask(front.http, path)[0] not in (403, 404), path
    for path in SHUT:
        assert ask(front.http, path)[0] == 404, path
    assert b"nv_inference_request_success" in ask(front.metrics, "/metrics")[2]
    assert ask(front.metrics, GENERATE, question())[0] == ask(front.metrics, "/")[0] == 404
    with GrpcCaller(front.grpc) as caller:
        from tritonclient.grpc import service_pb2 as messages

        with pytest.raises(Exception, match="UNIMPLEMENTED"):
            caller.stub.LogSettings(messages.LogSettingsRequest(), timeout=60)
        with pytest.raises(Exception, match="UNIMPLEMENTED"):
            caller.stub.SystemSharedMemoryStatus(messages.SystemSharedMemoryStatusRequest(), timeout=60)
        assert caller.stub.ServerReady(messages.ServerReadyRequest(), timeout=60).ready


def test_what_is_too_large_is_refused_before_triton_reads_it(front: Front, behind: Deployment) -> None:
    assert ask(front.http, GENERATE, question(text_input="x" * 1_100_000))[0] == 413
    with GrpcCaller(front.grpc) as caller:
        with pytest.raises(Exception, match="413"):
            caller.infer("ensemble", text_inputs("x" * 17_000_000))
        with pytest.raises(ServerRefusal, match="more than the limit"):
            caller.infer("ensemble", text_inputs("x" * 100_000))


def test_a_full_queue_is_503_with_a_time_to_retry(front: Front, behind: Deployment) -> None:
    """The streams are read to their end: Triton 2.51 may abort when many are cancelled at once (docs/serve.md)."""
    with GrpcCaller(front.grpc) as caller:
        long = text_inputs("one two", max_tokens=3000, min_tokens=3000, stream=True)
        count = MAX_BATCH_SIZE + MAX_QUEUE_SIZE
        streams = [caller.open("ensemble", long, seconds=120) for _ in range(count)]
        wait_until(lambda: behind.running() == len(streams), "the queue is full")
        for path in (GENERATE, f"{GENERATE}_stream"):
            status, headers, told = ask(front.http, path, question(stream=path != GENERATE))
            assert status == 503 and b"queue is full" in told
            assert 1 <= int(headers["retry-after"]) <= 60
        with DrafthouseClient(front.http, protocol="http") as client, pytest.raises(errors.QueueFull) as full:
            client.generate("one two", max_tokens=4)
        assert full.value.retry_after is not None and 1 <= full.value.retry_after <= 60
        for stream in streams:
            assert list(responses(stream))
    wait_until(behind.is_idle, "nothing runs any more")
    status, headers, told = ask(front.http, GENERATE, question(max_tokens=-1))
    assert status == 400 and b"max_tokens is -1" in told and "retry-after" not in headers


def test_what_nobody_waits_for_takes_few_places(behind: Deployment, tmp_path: Path) -> None:
    """Triton does not see that the client of a one-shot has gone; by the client's address the proxy can."""
    few = 4
    with front_of(behind.server, tmp_path, unanswered=few) as front:
        body = question(max_tokens=3000, min_tokens=3000)
        gone = [http.client.HTTPConnection(front.http, timeout=60) for _ in range(few)]
        for connection in gone:
            connection.request("POST", GENERATE, body, {"Content-Type": "application/json"})
        wait_until(lambda: behind.running() == few, "all of them run")
        for connection in gone:
            connection.close()
        status, headers, _ = ask(front.http, GENERATE, question())
        assert status == 429 and headers["retry-after"] == "30"
        with DrafthouseClient(front.http, protocol="http") as client, pytest.raises(errors.QueueFull) as full:
            client.generate("one two", max_tokens=4)
        with DrafthouseClient(front.grpc) as client, pytest.raises(errors.QueueFull) as full_grpc:
            client.generate("one two", max_tokens=4)
        assert full.value.retry_after == full_grpc.value.retry_after == 30
        assert behind.running() == few
        other = http.client.HTTPConnection(front.http, timeout=60, source_address=("127.0.0.2", 0))
        for _ in range(3 * few):  # whoever waits for the answers may ask on
            other.request("POST", GENERATE, question(), {"Content-Type": "application/json"})
            answer = other.getresponse()
            assert answer.status == 200 and answer.read()
        other.close()
    wait_until(behind.is_idle, "nothing runs any more")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_streams_come_through_as_they_are_made(front: Front, behind: Deployment, protocol: Any) -> None:
    tokens = 512  # what comes while its reader is busy is joined; of 512 some come alone on any machine
    with GrpcCaller(behind.grpc) as caller:
        expected = whole_text(caller.infer("ensemble", text_inputs("one two", max_tokens=tokens)))
    address = front.grpc if protocol == "grpc" else front.http
    with DrafthouseClient(address, protocol=protocol) as client:
        chunks = list(client.stream("one two", max_tokens=tokens))
    assert len(chunks) > 8 and "".join(chunk.text for chunk in chunks) == expected
