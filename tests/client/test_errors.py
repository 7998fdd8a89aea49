"""What goes wrong arrives as the right kind of error, with words that help."""

from __future__ import annotations

import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from client import AsyncDrafthouseClient, DrafthouseClient, errors
from tests.client.conftest import Connect
from tests.client.triton_server import Triton

pytestmark = pytest.mark.triton


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("fail UNAVAILABLE the queue is full: 16 requests run and 64 wait", errors.QueueFull),
        ("fail UNAVAILABLE Exceeds maximum queue size", errors.QueueFull),
        (
            "fail INVALID_ARG invalid request: the prompt has 3000 tokens, at most 2048 fit",
            errors.InvalidRequest,
        ),
        ("fail INTERNAL the engine fell over", errors.ServerError),
        ("fail UNAVAILABLE model 'tensorrt_llm' is not ready", errors.ServerUnavailable),
        ("fail CANCELLED the request was cancelled", errors.Cancelled),
        ("raises something", errors.ServerError),
    ],
)
def test_failures_of_the_model(client: Any, prompt: str, kind: type[errors.ClientError]) -> None:
    with pytest.raises(errors.ClientError) as caught:
        client.generate(prompt, request_id="doomed")
    assert type(caught.value) is kind
    assert caught.value.request_id == "doomed"
    assert prompt.split(" ", 2)[-1] in str(caught.value) or "this" in str(caught.value)


def test_failure_in_mid_stream_comes_after_the_chunks(client: Any) -> None:
    stream = client.stream("breaks down after some words")
    chunks = iter(stream)
    assert next(chunks).text == "breaks down "
    with pytest.raises(errors.ServerError, match="the model broke down"):
        next(chunks)
    assert stream.result.text == "breaks down "
    assert stream.result.finish_reason == "cancelled"


def test_server_serves_on_after_failures(client: Any) -> None:
    for _ in range(20):
        with pytest.raises(errors.ServerError):
            client.generate("fail INTERNAL once more")
    assert client.generate("a b").text == "a b "


def test_unknown_model_names_those_that_exist(connect: Connect, triton: Triton) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        connect(triton, model="ensembel").generate("x")
    assert caught.value.field == "model"
    assert "ensemble, legacy, tensorrt_llm, words; did you mean 'ensemble'?" in str(caught.value)


def test_nobody_listens(connect: Connect) -> None:
    with pytest.raises(errors.ServerUnavailable, match=r"127\.0\.0\.1:9 .*drafthouse serve"):
        connect("127.0.0.1:9").generate("x")


def test_host_that_does_not_exist(connect: Connect) -> None:
    with pytest.raises(errors.ServerUnavailable, match=r"nowhere\.invalid:8001"):
        connect("nowhere.invalid:8001").generate("x")


def test_port_of_the_other_protocol(triton: Triton) -> None:
    with DrafthouseClient(triton.http) as client, pytest.raises(errors.ServerUnavailable, match="HTTP port"):
        client.generate("x")
    with (
        DrafthouseClient(triton.grpc, protocol="http") as client,
        pytest.raises(errors.ServerUnavailable, match="gRPC port"),
    ):
        client.generate("x")


def test_server_that_never_answers_is_given_up_at_the_deadline(connect: Connect) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(errors.DeadlineExceeded, match=r"deadline of 0\.3 s"),
    ):
        connect(f"127.0.0.1:{silent.getsockname()[1]}").generate("x", deadline=0.3)


def test_server_that_dies_in_mid_stream(connect: Connect, start_another: Callable[[], Triton]) -> None:
    server = start_another()
    stream = connect(server, model="words").stream("endless words", max_tokens=100_000)
    chunks = iter(stream)
    next(chunks)
    server.kill()
    with pytest.raises(errors.ServerUnavailable, match="lost the connection"):
        list(chunks)
    assert stream.result.text.startswith("endless words ")


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(errors.InvalidRequest, ValueError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)


@pytest.mark.parametrize("kind", [DrafthouseClient, AsyncDrafthouseClient])
@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "[::1",
        "::1:8001",
        "http://localhost:8000",
        "localhost:",
        "localhost:x",
        ":8001",
        "a:1/v2",
    ],
)
def test_address_must_be_host_and_port(kind: type, url: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="HOST:PORT") as caught:
        kind(url)
    assert caught.value.field == "url"


def test_protocol_must_be_known() -> None:
    with pytest.raises(errors.InvalidRequest, match="'grpc' or 'http', not 'rest'"):
        DrafthouseClient("localhost:8001", protocol="rest")  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [200, 302, 404, 503])
def test_a_web_server_of_another_kind_is_named_without_its_page(status: int) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>\n  <h1>Sign in</h1>" + b"<br>" * 500)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with (
            DrafthouseClient(f"127.0.0.1:{server.server_port}", protocol="http") as client,
            pytest.raises(
                errors.ServerUnavailable, match=f"not Triton's HTTP endpoint .status {status}: "
            ) as caught,
        ):
            client.describe()
        server.shutdown()
    assert "<html> <h1>Sign in" in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("connect", ["http", "http-asyncio"], indirect=True)
def test_unknown_model_behind_a_proxy_that_keeps_the_index_closed(connect: Connect) -> None:
    """The kit's own does, and says so with its page of HTML."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(400, b"""{"error": "Request for unknown model: 'ensembel' is not found"}""")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(404, b"<html><body><h1>404 Not Found</h1></body></html>")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(errors.InvalidRequest, match=r"the server has no model 'ensembel'$") as caught:
            connect(f"127.0.0.1:{server.server_port}", model="ensembel").generate("x")
        server.shutdown()
    assert caught.value.field == "model"
