"""Calls from `tensorrt_llm_bls` to the models behind it, each of which ends soon after its client has gone.

Triton does not pass a client's cancellation on to the calls that a model makes for it. So every call has a random
id, and a watch stops the calls whose client has gone: in front of NVIDIA's backend by `stop` and that id, in front of
the embedded engine by a message (`engine.serving.mail`), from which it also hears of each response before it asks
for it.
"""

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engine.serving.backend import as_tensors, call_model, stop_request
from engine.serving.mail import NAME_DIGITS, Arrivals, Mailbox, heard, send

Tensors = Mapping[str, NDArray[Any]]
_WATCH_SECONDS = 0.05


def _yes() -> bool:
    return True


def _no() -> bool:
    return False


class Caller:
    """Calls models of this server on behalf of clients."""

    def __init__(self, *, embedded: bool) -> None:
        """`embedded`: whether the embedded engine is behind all models that are called."""
        self._open: dict[str, tuple[str, Callable[[], bool]]] = {}
        self._name = secrets.token_hex(NAME_DIGITS // 2)
        self._arrivals: dict[str, Arrivals] = {}
        self._mailbox = Mailbox(self._name, self._hear) if embedded else None
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._watch_clients, name="watch", daemon=True)
        self._watch.start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        self._watch.join()
        if self._mailbox:
            self._mailbox.close()

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
        identity = self._name + secrets.token_hex(NAME_DIGITS * 3 // 2)
        arrivals = self._arrivals[identity] = Arrivals()
        self._open[identity] = model, gone
        answers = call_model(
            model,
            as_tensors(inputs),
            outputs,
            request_id=identity,
            wait=arrivals.wait if self._mailbox else _yes,
        )
        ended = False
        try:
            for answer in answers:
                yield {name: tensor.as_numpy() for name, tensor in answer.items()}
                if not ended and enough():
                    ended = True
                    self._stop(model, identity)
        except pb_utils.TritonModelException:
            if not ended:
                raise
        finally:
            self._open[identity] = model, _yes
            answers.close()
            del self._open[identity], self._arrivals[identity]

    def _hear(self, text: str) -> None:
        identity, last = heard(text)
        if arrivals := self._arrivals.get(identity):
            arrivals.hear(last=last)

    def _stop(self, model: str, identity: str) -> None:
        if self._mailbox:
            send(model, identity)
        else:
            stop_request(model, identity)

    def _watch_clients(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            for identity, (model, gone) in list(self._open.items()):
                if gone():
                    self._stop(model, identity)  # again and again: it may not have begun yet
