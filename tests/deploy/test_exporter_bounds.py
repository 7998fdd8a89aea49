"""Whatever it asks and whoever asks it, the exporter answers, ends when it is told, and says when its data is old."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.exporter import fetch
from deploy.exporter.collector import Collector, Targets
from deploy.exporter.fetch import Unanswered, get_json, get_text, post_events
from tests.deploy.answering import Answering
from tests.end_to_end.deployment import wait_until

ROOT = Path(__file__).parents[2]


@contextmanager
def saying(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request and then does as `answer` says."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(2**16)
                try:
                    answer(connection)
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def dripping_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(10_000):
        connection.sendall(f"X-{number}: y\r\n".encode())
        time.sleep(0.05)


def dripping_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(10_000):
        connection.sendall(b"data: {}\n")
        time.sleep(0.05)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 2**16)


def moved(connection: socket.socket) -> None:
    connection.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/secret\r\nContent-Length: 0\r\n\r\n"
    )


@pytest.mark.parametrize("answer", [dripping_head, dripping_body])
def test_a_whole_exchange_has_a_deadline(answer: Callable[[socket.socket], None]) -> None:
    with saying(answer) as url, pytest.raises(Unanswered, match=r"not answered within 0\.3 s"):
        get_text(url, seconds=0.3)
    with saying(answer) as url, pytest.raises(Unanswered, match=r"within 0\.3 s"):
        for _ in post_events(url, {}, seconds=0.3):
            pass


def test_a_page_has_a_most_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MOST_BYTES", 2**20)
    with saying(endless) as url:
        with pytest.raises(Unanswered, match="more than 1048576 bytes"):
            get_text(url)
        with pytest.raises(Unanswered, match="more than 1048576 bytes"):
            list(post_events(url, {}, seconds=10))


def test_it_asks_nobody_but_whom_it_was_told_to() -> None:
    with saying(moved) as url, pytest.raises(Unanswered, match="status 302"):
        get_text(url)


def test_deep_json_is_no_json(server: Answering) -> None:
    server.pages["/deep"] = "[" * 200_000
    with pytest.raises(Unanswered, match="not JSON"):
        get_json(f"{server.url}/deep")


def test_a_reading_that_fails_is_not_the_last(server: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    server.pages["/metrics"] = [{"specDecodingStats": {"numDraftTokens": "many", "numAcceptedTokens": None}}]
    collector, stopped = Collector(Targets(trtllm_serve=server.url), None), threading.Event()
    running = threading.Thread(target=collector.run, args=(0.01, stopped))
    running.start()
    wait_until(lambda: len(server.asked) > 4, "it goes on asking")
    first = collector.age
    wait_until(lambda: collector.age > first + 0.2, "its data grows old")
    server.pages["/metrics"] = []
    wait_until(lambda: collector.age < 0.2, "it has read anew")
    stopped.set()
    running.join()
    assert "a reading failed" in capsys.readouterr().err


def test_it_ends_on_sigterm_while_it_waits_for_an_answer_and_tells_the_age_of_its_data() -> None:
    def silent(connection: socket.socket) -> None:
        asked.set()
        time.sleep(600)

    asked = threading.Event()
    with saying(silent) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.exporter", "--triton-metrics", url, "--port", "0", "--host", "127.0.0.1"],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "EXPORTER_INTERVAL": "0.1"},
        )  # fmt: skip
        assert process.stdout is not None
        found = re.search(r":(\d+)/metrics", process.stdout.readline())
        assert found
        assert asked.wait(60)
        assert page(int(found[1]), "/healthz") == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()


def test_old_data_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import ThreadingHTTPServer

    from deploy.exporter.__main__ import _handler

    collector = Collector(Targets(), None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(collector, 100))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    port = server.server_address[1]
    assert page(port, "/healthz") == 200
    monkeypatch.setattr(collector, "_polled", time.monotonic() - 101)
    assert page(port, "/healthz") == 503 and page(port, "/metrics") == 200
    server.shutdown()
    server.server_close()


def page(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
