"""The engine in a thread of its own: callers on any thread, and callers that go away."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import QueueFullError, RequestError
from engine.outputs import RequestOutput
from engine.request import GenerationRequest
from engine.service import EngineService
from engine.serving.life import SignOfLife
from speculators.registry import create
from tests.engine.driving import BrokenRunner, Outcome, check_empty, make_engine, plain, prompt_of
from tests.runners import openvino_runner
from tests.tiny import NUM_BLOCKS, THREADS, TinyTargets

PATIENCE = 60.0  # seconds until a test gives up
LONG = GenerationRequest((1, 2, 3), 200)


class Call(Outcome):
    """One request to a service; it can be waited for."""

    def __init__(self, service: EngineService, request: GenerationRequest) -> None:
        super().__init__()
        self.begun, self.ended, self.gone = threading.Event(), threading.Event(), threading.Event()
        service.submit(request, self._take, self.gone.is_set)

    def _take(self, event: RequestOutput) -> None:
        self.events.append(event)
        self.begun.set()
        if event.finish_reason:
            self.ended.set()

    def wait(self) -> "Call":
        assert self.ended.wait(PATIENCE), "the request was not ended"
        return self


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def engine(tiny_targets: TinyTargets) -> Engine:
    runner = openvino_runner(tiny_targets.engine("llama", "fp32"), num_blocks=NUM_BLOCKS, threads=THREADS)
    return make_engine(runner, create("anpd"), max_batch_size=4, max_queue_size=30)


@pytest.fixture
def service(engine: Engine) -> Iterator[EngineService]:
    service = EngineService(engine)
    yield service
    service.close()
    check_empty(engine)


def test_requests_from_many_threads(service: EngineService, tiny_targets: TinyTargets) -> None:
    requests = [GenerationRequest(prompt_of(length), 12) for length in range(1, 25)]
    calls: dict[int, Call] = {}
    threads = [
        threading.Thread(target=lambda index=index: calls.update({index: Call(service, requests[index])}))
        for index in range(len(requests))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reference = tiny_targets.runner("llama", "fp32")
    for index, request in enumerate(requests):
        assert calls[index].wait().tokens == plain(reference, request)


def test_an_abandoned_request_gives_its_slot_back(service: EngineService, engine: Engine) -> None:
    call = Call(service, LONG)
    assert call.begun.wait(PATIENCE)
    call.gone.set()
    assert call.wait().last.finish_reason == "cancelled"
    assert len(call.tokens) < 200
    eventually(lambda: engine.statistics.used_blocks == 0)


def test_refusals_come_as_events(service: EngineService) -> None:
    refused = Call(service, GenerationRequest((1, 999), 4)).wait().last
    assert refused.finish_reason == "error" and isinstance(refused.error, RequestError)
    calls = [Call(service, LONG) for _ in range(60)]
    errors = [call.wait().last.error for call in calls]
    assert any(isinstance(error, QueueFullError) for error in errors)
    assert Call(service, GenerationRequest((1, 2), 4)).wait().last.finish_reason == "length"


def test_a_sink_that_fails_ends_its_own_request_alone(service: EngineService, engine: Engine) -> None:
    def fails(event: RequestOutput) -> None:
        raise OSError("the stream is closed")

    beside = Call(service, LONG)
    service.submit(LONG, fails)
    assert len(beside.wait().tokens) == 200
    eventually(lambda: engine.idle)


def test_closing_answers_everyone(engine: Engine) -> None:
    service = EngineService(engine)
    calls = [Call(service, LONG) for _ in range(12)]
    service.close()
    assert all(call.ended.is_set() for call in calls)
    assert {call.last.finish_reason for call in calls} <= {"error", "length"}
    assert "shutting down" in str(calls[-1].last.error)
    check_empty(engine)
    with pytest.raises(RuntimeError, match="closed"):
        Call(service, LONG)


def test_closing_answers_what_has_just_arrived(engine: Engine) -> None:
    """Submitted while the last step runs, so that no other step takes it from the inbox."""
    service = EngineService(engine)
    running = threading.Event()

    def hold_the_step(event: RequestOutput) -> None:
        running.set()
        eventually(lambda: service._closed)

    service.submit(LONG, hold_the_step)
    assert running.wait(PATIENCE)
    late = Call(service, LONG)
    service.close()
    assert late.last.finish_reason == "error"


def test_a_failed_step_ends_its_requests_and_the_service_lives_on(tiny_targets: TinyTargets) -> None:
    runner = BrokenRunner(tiny_targets.engine("llama", "fp32"), calls=3)
    engine = make_engine(runner)
    service = EngineService(engine)
    failed = Call(service, LONG).wait()
    assert "the device is gone" in str(failed.last.error)
    runner.repair()
    assert len(Call(service, GenerationRequest((1, 2), 4)).wait().tokens) == 4
    service.close()
    check_empty(engine)


def test_it_reports_after_every_step_and_when_idle(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    service = EngineService(
        engine, after_step=lambda: seen.append((engine.statistics.steps, engine.statistics.decoding))
    )
    Call(service, GenerationRequest((1, 2), 6)).wait()
    service.close()
    assert [steps for steps, _ in seen] == sorted(steps for steps, _ in seen)
    assert seen[-1][1] == 0


def test_it_shows_that_it_lives_also_while_nobody_asks_anything(engine: Engine) -> None:
    shown: list[float] = []
    service = EngineService(engine, alive=lambda: shown.append(1.0))
    eventually(lambda: len(shown) >= 3)
    service.close()


@pytest.mark.parametrize("whole", [False, True], ids=["file", "directory"])
def test_requests_go_on_when_its_signs_are_removed(
    engine: Engine, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others clean directories for temporary files up."""
    monkeypatch.setenv("DRAFTHOUSE_PLACE", str(tmp_path))
    sign = SignOfLife("tensorrt_llm_0_0, engine")
    (file,) = (tmp_path / "signs").iterdir()
    removed = threading.Event()

    def alive() -> None:
        if calls and calls[0].begun.is_set() and not removed.is_set():
            shutil.rmtree(file.parent) if whole else file.unlink()
            removed.set()
        sign.show()

    calls: list[Call] = []
    service = EngineService(engine, alive=alive)
    calls.append(Call(service, LONG))
    assert len(calls[0].wait().tokens) == 200 and removed.is_set()
    assert whole or file.exists(), "it is shown again"
    service.close()
    sign.end()


def test_it_shows_nothing_while_a_step_is_stuck(engine: Engine) -> None:
    shown: list[float] = []
    stuck, go_on = threading.Event(), threading.Event()
    service = EngineService(engine, alive=lambda: shown.append(1.0))

    def hold_the_step(event: RequestOutput) -> None:
        stuck.set()
        assert go_on.wait(PATIENCE)

    service.submit(LONG, hold_the_step)
    assert stuck.wait(PATIENCE)
    before = len(shown)
    assert not go_on.wait(2.5), "longer than it takes to show it when idle"
    assert len(shown) == before
    go_on.set()
    eventually(lambda: len(shown) > before)
    service.close()
