"""Calls from `tensorrt_llm_bls` to the models behind it, each of which ends soon after its client has gone.

Triton does not pass a client's cancellation on to the calls that a model makes for it. So every call has a random
id, and a watch stops the calls whose client has gone: by `stop` and that id, which NVIDIA's backend and the
embedded engine both understand.
"""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engine.serving.backend import as_tensors, call_model, stop_request

Tensors = Mapping[str, NDArray[Any]]
_WATCH_SECONDS = 0.05


def _yes() -> bool:
    return True


def _no() -> bool:
    return False


class Caller:
    """Calls models of this server on behalf of clients."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, Callable[[], bool]]] = {}
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._watch_clients, name="watch", daemon=True)
        self._watch.start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        self._watch.join()

    def call(
        self,
        model: str,
        inputs: Tensors,
        outputs: Iterable[str],
        gone: Callable[[], bool],
        enough: Callable[[], bool] = _no,
    ) -> Iterator[Tensors]:
        """Run a model; its responses one after the other, as they come.

        Args:
            model: name of the model.
            inputs: its inputs.
            outputs: names of the outputs that are wanted.
            gone: whether nobody waits for the answer any more; the call then ends early.
            enough: asked after each response: whether the model is to end. What it still has to say comes all the
                same, but no error.

        Raises:
            pb_utils.TritonModelException: the model refused; carries its message.
        """
        identity = uuid.uuid4().hex
        self._open[identity] = model, gone
        answers = call_model(model, as_tensors(inputs), outputs, request_id=identity)
        ended = False
        try:
            for answer in answers:
                yield {name: tensor.as_numpy() for name, tensor in answer.items()}
                if not ended and enough():
                    ended = True
                    stop_request(model, identity)
        except pb_utils.TritonModelException:
            if not ended:
                raise
        finally:
            self._open[identity] = model, _yes
            answers.close()
            del self._open[identity]

    def _watch_clients(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            for identity, (model, gone) in list(self._open.items()):
                if gone():
                    stop_request(model, identity)  # again and again: it may not have begun yet
