"""One client, many requests at once: from threads, and from gevent's greenlets as locust runs them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client import DrafthouseClient
from tests.client.triton_server import Triton

pytestmark = pytest.mark.triton

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_threads_share_a_client(triton: Triton, protocol: str) -> None:
    threads = 16
    together = threading.Barrier(threads, timeout=60)

    def read(number: int) -> str:
        texts = []
        for position, chunk in enumerate(client.stream(f"endless {number}", max_tokens=30)):
            if position == 0:
                together.wait()  # all streams are open at this point
            texts.append(chunk.text)
        return "".join(texts)

    with (
        DrafthouseClient(triton.address(protocol), protocol=protocol) as client,
        ThreadPoolExecutor(threads) as pool,
    ):
        assert list(pool.map(read, range(threads))) == [f"endless {n} " * 15 for n in range(threads)]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_request_starts_no_thread(triton: Triton, protocol: str) -> None:
    with DrafthouseClient(triton.address(protocol), protocol=protocol, model="words") as client:
        streams = [client.stream("endless x", max_tokens=100_000) for _ in range(8)]
        first = iter(streams[0])
        next(first)
        before = threading.active_count()
        chunks = [iter(stream) for stream in streams[1:]]
        for running in chunks:
            next(running)
        assert threading.active_count() == before
        for stream in streams:
            stream.cancel()
    assert {triton.ending(stream.request_id) for stream in streams} == {"cancelled"}, (
        "none burdens later tests"
    )


GREENLETS = """
import gevent.monkey
gevent.monkey.patch_all()
import json, sys
import gevent
import grpc.experimental.gevent
grpc.experimental.gevent.init_gevent()
from client import DrafthouseClient, errors

address, protocol = sys.argv[1:]
client = DrafthouseClient(address, protocol=protocol, model="words")
order = []

def read(number):
    stream = client.stream(f"endless {number}", max_tokens=20)
    for chunk in stream:
        order.append(number)
    return stream.result.text

def late():
    try:
        client.generate("endless x", max_tokens=100_000, deadline=0.2, request_id=f"greenlet {protocol}")
    except errors.DeadlineExceeded:
        return "deadline"

greenlets = [gevent.spawn(read, number) for number in range(8)] + [gevent.spawn(late)]
gevent.joinall(greenlets, raise_error=True)
print(json.dumps([[greenlet.value for greenlet in greenlets], order]))
"""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_greenlets_share_a_client(triton: Triton, protocol: str) -> None:
    pytest.importorskip("gevent")
    run = subprocess.run(
        [sys.executable, "-c", GREENLETS, triton.address(protocol), protocol],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    values, order = json.loads(run.stdout.splitlines()[-1])
    assert values == [*(f"endless {number} " * 10 for number in range(8)), "deadline"]
    assert order != sorted(order), "the greenlets ran one after the other"
    assert triton.ending(f"greenlet {protocol}") == "cancelled"


VANISHING = """
import os, sys
from client import DrafthouseClient
address, protocol = sys.argv[1:]
client = DrafthouseClient(address, protocol=protocol, model="words")
for chunk in client.stream("endless x", max_tokens=20_000, request_id=f"vanished {protocol}"):
    os._exit(0)
"""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_process_that_vanishes_is_cancelled(triton: Triton, protocol: str) -> None:
    command = [sys.executable, "-c", VANISHING, triton.address(protocol), protocol]
    subprocess.run(command, cwd=ROOT, timeout=180, check=True)
    assert triton.ending(f"vanished {protocol}") == "cancelled"
