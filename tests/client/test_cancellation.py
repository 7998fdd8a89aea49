"""However a caller leaves a generation, the model on the server learns of it: see the model's journal.

Over HTTP Triton notices a client that left when it next writes to it, so there the model has to be talking;
over gRPC it may also be silent, as it is while it works on a long prompt.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from client import DrafthouseClient, Stream, errors
from tests.client.conftest import Connect
from tests.client.triton_server import DEADLINES, Triton

pytestmark = pytest.mark.triton

ENDLESS = {"prompt": "endless words", "max_tokens": 20_000}


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, triton: Triton) -> Iterator[DrafthouseClient]:
    with DrafthouseClient(triton.address(request.param), protocol=request.param, model="words") as client:
        yield client


def assert_cancelled(triton: Triton, stream: Stream) -> None:
    assert triton.ending(stream.request_id) == "cancelled"
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.acceptance is None


def test_break(client: DrafthouseClient, triton: Triton) -> None:
    stream = client.stream(**ENDLESS)
    for _ in stream:
        break
    assert_cancelled(triton, stream)
    assert stream.result.text == "endless words "


def test_exception_in_the_loop(client: DrafthouseClient, triton: Triton) -> None:
    stream = client.stream(**ENDLESS)
    with pytest.raises(ZeroDivisionError):
        for _ in stream:
            _ = 1 / 0
    assert_cancelled(triton, stream)


def test_keyboard_interrupt_while_waiting(client: DrafthouseClient, triton: Triton) -> None:
    stream = client.stream(**ENDLESS)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        for number, _ in enumerate(stream):
            if number == 3:
                timer.start()
        timer.join()  # a stream that has ended by itself is found out below, and the signal ends no other test
        time.sleep(10)
    assert_cancelled(triton, stream)


def test_end_of_with_block(client: DrafthouseClient, triton: Triton) -> None:
    with client.stream(**ENDLESS) as stream:
        chunks = iter(stream)
        next(chunks)
    assert_cancelled(triton, stream)


def test_cancel_by_another_thread(client: DrafthouseClient, triton: Triton) -> None:
    stream = client.stream(**ENDLESS)
    with pytest.raises(errors.Cancelled):
        for number, _ in enumerate(stream):
            if number == 3:
                threading.Timer(0.05, stream.cancel).start()
    assert_cancelled(triton, stream)


def test_cancel_in_the_loop_is_not_mistaken_for_the_end(client: DrafthouseClient, triton: Triton) -> None:
    stream = client.stream(**ENDLESS)
    with pytest.raises(errors.Cancelled):
        for _ in stream:
            stream.cancel()
    assert_cancelled(triton, stream)


def test_cancel_before_the_beginning_sends_nothing(client: DrafthouseClient, triton: Triton) -> None:
    stream = client.stream(**ENDLESS)
    stream.cancel()
    with pytest.raises(errors.Cancelled):
        list(stream)


def test_cancel_after_the_end_changes_nothing(client: DrafthouseClient) -> None:
    with client.stream("a b") as stream:
        list(stream)
    stream.cancel()
    assert stream.result.finish_reason == "stop"


def test_deadline_of_a_stream(client: DrafthouseClient, triton: Triton) -> None:
    for deadline in DEADLINES:
        stream = client.stream(**ENDLESS, deadline=deadline)
        with pytest.raises(errors.DeadlineExceeded, match=rf"deadline of {deadline:g} s"):
            list(stream)
        if triton.has(stream.request_id):
            break
    assert_cancelled(triton, stream)


def test_deadline_of_a_whole_generation(client: DrafthouseClient, triton: Triton) -> None:
    for deadline in DEADLINES:
        name = f"late {client.model} {id(client)} {deadline}"
        with pytest.raises(errors.DeadlineExceeded) as caught:
            client.generate(**ENDLESS, deadline=deadline, request_id=name)
        if triton.has(name):
            break
    assert caught.value.request_id == name
    assert triton.ending(caught.value.request_id) == "cancelled"


def test_deadline_that_is_kept(client: DrafthouseClient) -> None:
    assert client.generate("a b c", deadline=30).text == "a b c "


def test_others_go_on_when_one_is_cancelled(client: DrafthouseClient, triton: Triton) -> None:
    doomed = client.stream(**ENDLESS)
    other = client.stream("endless a", max_tokens=40)
    chunks, others = iter(doomed), iter(other)
    next(chunks)
    next(others)
    doomed.cancel()
    assert triton.ending(doomed.request_id) == "cancelled"
    assert len(list(others)) == 19
    assert triton.ending(other.request_id) == "finished"


@pytest.fixture
def grpc(triton: Triton) -> Iterator[DrafthouseClient]:
    with DrafthouseClient(triton.grpc, model="words") as client:
        yield client


def test_cancel_while_the_model_is_silent(grpc: DrafthouseClient, triton: Triton) -> None:
    stream = grpc.stream("silent")

    def cancel() -> None:
        triton.wait_for(stream.request_id)
        stream.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(errors.Cancelled):
        list(stream)
    assert_cancelled(triton, stream)


def test_deadline_while_the_model_is_silent(grpc: DrafthouseClient, triton: Triton) -> None:
    for deadline in DEADLINES:
        stream = grpc.stream("silent", deadline=deadline)
        with pytest.raises(errors.DeadlineExceeded):
            list(stream)
        if triton.has(stream.request_id):
            break
    assert_cancelled(triton, stream)


def test_keyboard_interrupt_while_the_model_is_silent(grpc: DrafthouseClient, triton: Triton) -> None:
    def interrupt() -> None:
        triton.wait_for("interrupted")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        grpc.generate("silent", request_id="interrupted")
    assert triton.ending("interrupted") == "cancelled"


def test_closing_the_client_cancels_what_runs(triton: Triton) -> None:
    client = DrafthouseClient(triton.grpc, model="words")
    stream = client.stream(**ENDLESS)
    chunks = iter(stream)
    next(chunks)
    client.close()
    with pytest.raises(errors.ClientError):
        list(chunks)
    assert triton.ending(stream.request_id) == "cancelled"


def test_deadline_holds_where_the_cancellation_has_to_wait(connect: Connect, triton: Triton) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        connect(triton, model="words").generate("silent", deadline=0.2)
