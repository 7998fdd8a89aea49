"""One request to `tensorrt_llm_bls` and its responses, which come from the threads of its rows."""

import secrets
import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from engine.serving.backend import refuse, response
from engine.serving.calls import Tensors

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Exchange:
    """Sends what rows have to say, and ends when the last of them has ended.

    What ends a row before its time ends the request and its other rows. A client that has gone gets nothing more
    but the end: tritonserver 2.51 now and then crashes when it writes to a gRPC stream that was cancelled.

    Triton does not tell a running step of an ensemble that its client has gone. `postprocessing`, which is told,
    says so by the handle that came with the tokens; it is random, so nobody stops what others have running.
    """

    def __init__(self, request: Any, rows: int) -> None:
        """Expect `rows` rows to end."""
        self.handle = secrets.randbits(64)
        self.arrival_ns, self.arrived = time.time_ns(), time.monotonic()
        self.wanted = frozenset(request.requested_output_names())
        self._sender = request.get_response_sender()
        self._lock = threading.RLock()
        self._rows = rows
        self._begun = False
        self._stopped = False
        self._error: Exception | None = None

    def stop(self) -> None:
        """End the request: its client has gone."""
        self._stopped = True

    def gone(self) -> bool:
        """Whether nobody waits for the rest: the client has gone, or another row has failed."""
        with self._lock:
            # Once it has its end, a request must not be asked any more: tritonserver 2.51 has freed what it would read.
            ended = not self._rows or self._stopped or self._error is not None
            return ended or bool(self._sender.is_cancelled())

    def send(self, outputs: Tensors) -> None:
        """Send a response, unless nobody waits for it."""
        made = response({**outputs, "generation_handle": np.array([[self.handle]], np.uint64)}, self.wanted)
        with self._lock:
            if not self.gone():
                self._begun = True
                self._sender.send(made)

    def close_row(self, error: Exception | None = None) -> bool:
        """A row has ended, with an error or without; whether it was the last one, which ends the request."""
        with self._lock:
            self._error = self._error or error
            self._rows -= 1
            if not self._rows:
                self._end()
            return not self._rows

    def _end(self) -> None:
        if self._error is None or self._stopped or self._sender.is_cancelled():
            self._sender.send(flags=_FINAL)
        else:
            refuse(self._sender, self._error, begun=self._begun)
