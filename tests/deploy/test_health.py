"""Whether a server is well, and what its page of figures says, when what answers is not well itself."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from deploy.health import check
from deploy.metrics import running_requests, work_done
from tests.deploy.answering import Answering
from tests.deploy.test_exporter_bounds import dripping_body, saying

PAGE = """\
# HELP nv_trt_llm_request_metrics Requests by state
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 5
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 2
nv_trt_llm_request_metrics{model="other",request_type="active",version="1"} 1
nv_inference_request_success{model="ensemble",version="1"} 7
nv_inference_request_success{version="1",model="tensorrt_llm_bls"} 20
nv_inference_request_success{model="preprocessing",version="1"} 400
drafthouse_spec_tokens_total{model="a model",version="1"} 1000
nv_llm_output_token_len_sum{model="tensorrt_llm"} 30000
"""


def nonsense(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def broken_off(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nnv_")


def broken_refusal(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n")


@pytest.fixture(autouse=True)
def _proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy for everything, behind which there is no way back to this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_figures_are_read(server: Answering) -> None:
    address = f"{server.url}/metrics"
    assert running_requests(address) is None and work_done(address) is None
    server.pages["/metrics"] = PAGE
    assert running_requests(address) == 3
    assert work_done(address) == 31027
    server.pages["/metrics"] = "# nothing yet\n"
    assert running_requests(address) is None and work_done(address) == 0


@pytest.mark.parametrize("answer", [nonsense, broken_off, broken_refusal, dripping_body])
def test_a_page_that_is_none_says_nothing(answer: Callable[[socket.socket], None]) -> None:
    with saying(answer) as url:
        assert running_requests(url, 0.3) is None and work_done(url, 0.3) is None


def test_a_token_is_asked_for(server: Answering) -> None:
    server.pages["/metrics"] = PAGE
    server.pages["/v2/models/ensemble/generate"] = {"text_output": "b"}
    assert check(server.url, f"{server.url}/metrics", 5).well
    del server.pages["/v2/models/ensemble/generate"]
    found = check(server.url, f"{server.url}/metrics", 5)
    assert not found.well and found.shown_by == "HTTP status 404"


@pytest.mark.parametrize("answer", [nonsense, broken_off, broken_refusal])
def test_what_does_not_speak_http_is_not_well(answer: Callable[[socket.socket], None]) -> None:
    with saying(answer) as url:
        found = check(url, f"{url}/metrics", 1)
    assert not found.well and "does not answer" in found.shown_by
