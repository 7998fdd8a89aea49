"""Who drafts for `tensorrt_llm_bls`: a draft model of the same server, or n-grams of the text itself.

Both draft without chance, the draft model by argmax, so that verification by equality of tokens is exact at any
temperature (see `engine.verification`). With draft logits (`engine.serving.draft_logits`) a model's drafts are drawn,
and accepted by their distribution.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from engine.errors import RequestError
from engine.request import GenerationRequest
from engine.serving.calls import Caller, Tensors
from engine.serving.distribution import for_the_backend
from engine.serving.draft_logits import drawing, held_against
from engine.serving.target import Draft, read_tokens, token_tensors
from speculators.model_free import MODEL_FREE
from speculators.outcome import StepOutcome


class Drafting(Protocol):
    """Drafts for one generation."""

    def propose(self, output: Sequence[int], most: int) -> Draft:
        """At most `most` tokens that may follow; `output` holds all that has been emitted."""

    def close(self) -> None:
        """Forget the generation."""


class Drafter(Protocol):
    """Begins generations; called from many threads."""

    def start(
        self, request: GenerationRequest, inputs: Tensors, gone: Callable[[], bool], *, by_logits: bool
    ) -> Drafting:
        """Draft for a request.

        Args:
            request: what is generated.
            inputs: its tensors.
            gone: whether nobody waits any more.
            by_logits: give what the drafts were drawn from.

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

    def start(
        self, request: GenerationRequest, inputs: Tensors, gone: Callable[[], bool], *, by_logits: bool
    ) -> Drafting:
        """Count the prompt's n-grams."""
        return _NgramDrafting(self, request.prompt)


class _NgramDrafting:
    def __init__(self, drafter: NgramDrafter, prompt: Sequence[int]) -> None:
        self._speculator, self._lock = drafter._speculator, drafter._lock
        self._id = next(drafter._ids)
        self._seen = 0
        with self._lock:
            self._speculator.start(self._id, prompt)

    def propose(self, output: Sequence[int], most: int) -> Draft:
        with self._lock:
            self._speculator.observe(self._id, StepOutcome(output[self._seen :]))
            self._seen = len(output)
            return Draft(self._speculator.propose([self._id], [most])[0].tokens)

    def close(self) -> None:
        with self._lock:
            self._speculator.finish(self._id)


class ModelDrafter:
    """A Triton model with the contract of `tensorrt_llm` and the target's vocabulary."""

    def __init__(self, model: str, caller: Caller, *, continues: bool, fast_logits: bool = False) -> None:
        """Draft by `model`.

        Args:
            model: its name.
            caller: who calls it.
            continues: whether it takes `continued_tokens`, as the embedded engine does.
            fast_logits: whether logits go from engine to engine (`speculative_decoding_fast_logits`).
        """
        self._model, self._caller, self._continues = model, caller, continues
        self._fast_logits = fast_logits

    def start(
        self, request: GenerationRequest, inputs: Tensors, gone: Callable[[], bool], *, by_logits: bool
    ) -> Drafting:
        """See that the model is there."""
        ready = False
        with suppress(pb_utils.TritonModelException):
            ready = pb_utils.is_model_ready(self._model)
        if not ready:
            raise RequestError(
                f"the draft model {self._model!r} (tensorrt_llm_draft_model_name) is not ready on this server; "
                "load it, or send num_draft_tokens 0"
            )
        kept = {name: inputs[name] for name in ("end_id", "pad_id", "cache_salt") if name in inputs}
        if by_logits:
            return _LogitsDrafting(self, request, {}, gone)
        return _ModelDrafting(self, request, kept, gone)


class _ModelDrafting:
    """The likeliest tokens of a draft model."""

    def __init__(
        self, drafter: ModelDrafter, request: GenerationRequest, inputs: Tensors, gone: Callable[[], bool]
    ) -> None:
        self._drafter, self._request, self._inputs, self._gone = drafter, request, inputs, gone

    def propose(self, output: Sequence[int], most: int) -> Draft:
        answers = list(self._call(output, most, {"runtime_top_k": np.array([[1]], np.int32)}, ()))
        return Draft(_tokens(answers)[:most])

    def close(self) -> None:
        pass

    def _call(
        self, output: Sequence[int], most: int, more: Tensors, outputs: Sequence[str]
    ) -> Iterator[Tensors]:
        drafter = self._drafter
        inputs = {**self._inputs, **token_tensors([*self._request.prompt, *output], most), **more}
        if drafter._continues:
            inputs |= {
                "continued_tokens": np.array([[len(output)]], np.int32),
                "num_draft_tokens": np.array([[0]], np.int32),
            }
        wanted = ("output_ids", "sequence_length", *outputs)
        yield from drafter._caller.call(drafter._model, inputs, wanted, self._gone)


class _LogitsDrafting(_ModelDrafting):
    """Tokens drawn by a draft model, with what they were drawn from."""

    def propose(self, output: Sequence[int], most: int) -> Draft:
        fast = self._drafter._fast_logits
        drawn = drawing(self._request.sampling, len(output), fast=fast)
        more = for_the_backend(drawn, {"return_generation_logits": np.array([[True]])})
        answers = list(self._call(output, most, more, ("generation_logits",)))
        tokens = _tokens(answers)[:most]
        if not tokens:
            return Draft()
        if "generation_logits" not in answers[-1]:
            raise RequestError(
                f"the draft model {self._drafter._model!r} answered without generation_logits; build its engine with "
                "speculation.use_draft_logits: true, or send use_draft_logits false"
            )
        logits = answers[-1]["generation_logits"][0, 0]
        return Draft(tokens, held_against(logits, len(tokens), drawn, fast=fast))


def _tokens(answers: Sequence[Tensors]) -> tuple[int, ...]:
    return tuple(token for answer in answers for token in read_tokens(answer))
