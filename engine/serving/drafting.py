"""Who drafts for `tensorrt_llm_bls`: a draft model of the same server, or n-grams of the text itself.

Both draft without chance, the draft model by argmax, so that verification by equality of tokens is exact at any
temperature (see `engine.verification`).
"""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from engine.request import RequestError
from engine.serving.calls import Caller, Tensors
from engine.serving.target import read_tokens, token_tensors
from speculators.model_free import MODEL_FREE


class Drafting(Protocol):
    """Drafts for one generation."""

    def propose(self, output: Sequence[int], most: int) -> tuple[int, ...]:
        """At most so many tokens that may follow; `output` holds all that has been emitted."""

    def close(self) -> None:
        """Forget the generation."""


class Drafter(Protocol):
    """Begins generations; called from many threads."""

    def start(self, prompt: Sequence[int], inputs: Tensors, gone: Callable[[], bool]) -> Drafting:
        """Draft for a prompt; `inputs` are the request's tensors, `gone` says when nobody waits any more.

        Raises:
            RequestError: it cannot draft.
        """


class NgramDrafter:
    """A speculator that needs nothing but the tokens: ANPD and its like."""

    def __init__(self, method: str, settings: Mapping[str, Any]) -> None:
        """Make the speculator.

        Raises:
            ValueError: there is no such method, or a setting is out of range.
        """
        if method not in MODEL_FREE:
            known = ", ".join(MODEL_FREE)
            raise ValueError(f"tensorrt_llm_bls: drafter is {method!r}; it must be one of {known}")
        self._speculator = MODEL_FREE[method](**settings)
        self._ids = itertools.count()
        self._lock = threading.Lock()

    def start(self, prompt: Sequence[int], inputs: Tensors, gone: Callable[[], bool]) -> Drafting:
        """Count the prompt's n-grams."""
        return _NgramDrafting(self, prompt)


class _NgramDrafting:
    def __init__(self, drafter: NgramDrafter, prompt: Sequence[int]) -> None:
        self._speculator, self._lock = drafter._speculator, drafter._lock
        self._id = next(drafter._ids)
        self._seen = 0
        with self._lock:
            self._speculator.start(self._id, prompt)

    def propose(self, output: Sequence[int], most: int) -> tuple[int, ...]:
        with self._lock:
            self._speculator.observe(self._id, output[self._seen :])
            self._seen = len(output)
            return self._speculator.propose([self._id], [most])[0].tokens

    def close(self) -> None:
        with self._lock:
            self._speculator.finish(self._id)


class ModelDrafter:
    """A Triton model with the contract of `tensorrt_llm` and the target's vocabulary."""

    def __init__(self, model: str, caller: Caller, *, continues: bool) -> None:
        """Draft by `model`; `continues` if it takes `continued_tokens`, as the embedded engine does."""
        self._model, self._caller, self._continues = model, caller, continues

    def start(self, prompt: Sequence[int], inputs: Tensors, gone: Callable[[], bool]) -> Drafting:
        """See that the model is there."""
        ready = False
        with suppress(pb_utils.TritonModelException):
            ready = pb_utils.is_model_ready(self._model)
        if not ready:
            raise RequestError(
                f"the draft model {self._model!r} (tensorrt_llm_draft_model_name) is not ready on this server; "
                "load it, or send num_draft_tokens 0"
            )
        kept = {name: inputs[name] for name in ("end_id", "pad_id") if name in inputs}
        return _ModelDrafting(self, prompt, kept, gone)


class _ModelDrafting:
    def __init__(
        self, drafter: ModelDrafter, prompt: Sequence[int], inputs: Tensors, gone: Callable[[], bool]
    ) -> None:
        self._drafter, self._prompt, self._inputs, self._gone = drafter, prompt, inputs, gone

    def propose(self, output: Sequence[int], most: int) -> tuple[int, ...]:
        drafter = self._drafter
        inputs = {
            **self._inputs,
            **token_tensors([*self._prompt, *output], most),
            "runtime_top_k": np.array([[1]], np.int32),
        }
        if drafter._continues:
            inputs |= {
                "continued_tokens": np.array([[len(output)]], np.int32),
                "num_draft_tokens": np.array([[0]], np.int32),
            }
        wanted = ("output_ids", "sequence_length")
        answers = drafter._caller.call(drafter._model, inputs, wanted, self._gone)
        return tuple(token for answer in answers for token in read_tokens(answer))[:most]

    def close(self) -> None:
        pass
