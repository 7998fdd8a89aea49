"""Drives the engine from a thread of its own, for callers on any thread.

Submissions and cancellations are put in an inbox and taken out between steps. Whoever submits also says how to
see that nobody waits for the answer any more; that is asked before every step, so an abandoned request gives
its slot back within one step.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.engine import Engine
from engine.errors import StoppingError
from engine.outputs import OutputCallback, RequestMetrics, RequestOutput
from engine.request import GenerationRequest

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 1.0


def _always() -> bool:
    return True


@dataclass(slots=True, eq=False)
class _Submission:
    request: GenerationRequest
    callback: OutputCallback
    abandoned: Callable[[], bool]
    engine_id: int = 0


class EngineService:
    """Runs an engine until it is closed.

    Args:
        engine: driven from now on by this service alone.
        after_step: called in the engine's thread after every step and whenever the engine falls idle.
        alive: called in the engine's thread between steps, once a second while there are none; as long as it is called,
            the engine is not stuck.
    """

    def __init__(
        self,
        engine: Engine,
        after_step: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._after_step = after_step
        self._alive = alive
        self._inbox: deque[_Submission] = deque()
        self._active: list[_Submission] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: GenerationRequest,
        callback: OutputCallback,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> None:
        """Hand in a request. All its outputs, refusals included, come to `callback` in the engine's thread."""
        with self._wake:
            if self._closed:
                raise StoppingError("the engine is closed")
            self._inbox.append(_Submission(request, callback, abandoned))
            self._wake.notify()

    def close(self) -> None:
        """End all requests and the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._alive()
            with self._wake:
                while self._engine.idle and not self._inbox and not self._closed:
                    self._wake.wait(_IDLE_SECONDS)
                    self._alive()
                if self._closed:
                    break
                arrived = list(self._inbox)
                self._inbox.clear()
            for submission in arrived:
                self._start(submission)
            self._drop_abandoned()
            self._step()
        for submission in self._inbox:  # nobody adds to it any more; these want an answer, too
            self._start(submission)
        self._engine.abort(StoppingError("the server is shutting down"))

    def _start(self, submission: _Submission) -> None:
        def callback(output: RequestOutput) -> None:
            if output.finish_reason:
                self._active.remove(submission)
            try:
                submission.callback(output)
            except Exception:  # the other requests of the step must not pay for it
                _log.exception("a response could not be sent; its request is ended")
                submission.abandoned = _always

        self._active.append(submission)
        try:
            submission.engine_id = self._engine.submit(submission.request, callback)
        except Exception as error:
            metrics = RequestMetrics(len(submission.request.prompt), arrival_ns=0)
            callback(RequestOutput(0, (), metrics, finish_reason="error", error=error))

    def _drop_abandoned(self) -> None:
        for submission in [item for item in self._active if item.abandoned()]:
            self._engine.cancel(submission.engine_id)

    def _step(self) -> None:
        try:
            self._engine.step()
        except Exception as error:
            _log.exception("the step failed; its requests are ended")
            self._engine.abort(error)
        self._after_step()
