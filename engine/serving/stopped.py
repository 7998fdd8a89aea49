"""Stop words as text in front of TensorRT-LLM's engines, which look for the tokens of a word and nothing else.

The tokens are streamed from the engine, whatever the client asked for, so that a word is met when it comes; then the
engine is told to stop. What it has generated meanwhile is dropped, its figures are kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.gate import Gate, StepCount
from engine.serving.calls import Tensors
from engine.serving.target import read_tokens
from engine.stopping import StopWatch

Arrays = dict[str, NDArray[Any]]
_TOKENS = ("output_ids", "sequence_length", "output_log_probs")


def streamed(inputs: Tensors) -> Arrays:
    """The inputs of a row with which its tokens come one after another, and nothing else."""
    return {**inputs, "streaming": np.array([[True]]), "exclude_input_in_output": np.array([[True]])}


class StoppedAnswers:
    """Makes the responses of one row from those of the engine.

    The engine's responses have `output_log_probs` where they have `cum_log_probs`.

    Args:
        watch: looks for the stop words.
        streaming: whether the client wants tokens as they come; if not, there is one response at the end.
        prefix: tokens that come before the output, if it is one response.
    """

    def __init__(self, watch: StopWatch, *, streaming: bool, prefix: Sequence[int] = ()) -> None:
        self._gate = Gate(watch)
        self._streaming = streaming
        self._tokens = list(prefix)
        self._log_probs: list[float] = []
        self._sum = 0.0
        self._seen = 0
        self._stopped = False
        self._figures: Arrays = {}

    def enough(self) -> bool:
        """Whether a stop word has been met, so that the engine may end."""
        return self._stopped

    def add(self, answer: Tensors) -> Arrays | None:
        """Take in a response of the engine; the one that is due to the client now, if one is."""
        tokens = read_tokens(answer)
        self._figures |= {name: value for name, value in answer.items() if name not in _TOKENS}
        if self._stopped:
            return None
        log_probs = _log_probs(answer, self._seen, len(tokens))
        self._seen += len(tokens)
        for token in tokens:
            if self._gate.add(token):
                self._stopped = True
                break
        self._gate.end_step(StepCount(len(tokens)), log_probs)
        return None if self._stopped else self._response(final=False)

    def last(self) -> Arrays:
        """The last response."""
        found = self._response(final=True)
        assert found is not None
        return found

    def _response(self, *, final: bool) -> Arrays | None:
        release = self._gate.release(ended=final)
        self._tokens += release.tokens
        self._log_probs += release.log_probs
        self._sum += sum(release.log_probs)
        if not final and not (self._streaming and self._tokens):
            return None
        arrays = {**self._figures, "is_final": np.array([[final]])}
        arrays |= {
            "output_ids": np.array(self._tokens, np.int32).reshape(1, 1, -1),
            "sequence_length": np.array([[len(self._tokens)]], np.int32),
            "text_cut": np.array([[release.cut]], np.int32),
        }
        if "num_output_tokens" in arrays:
            arrays["num_output_tokens"] = np.array([[self._gate.given]], np.int32)
        if "total_accepted_draft_tokens" in arrays:  # those of tokens after the stop word do not count
            most = max(0, self._gate.given - 1)
            arrays["total_accepted_draft_tokens"] = arrays["total_accepted_draft_tokens"].clip(max=most)
        if self._log_probs:
            arrays["output_log_probs"] = np.array([[self._log_probs]], np.float32)
        if "cum_log_probs" in arrays:  # the engine's own counts what was dropped, too
            arrays["cum_log_probs"] = np.array([[self._sum]], np.float32)
        self._tokens.clear()
        self._log_probs.clear()
        return arrays


def _log_probs(answer: Mapping[str, NDArray[Any]], before: int, count: int) -> list[float]:
    """Those of the response's tokens; a streamed response has them of all tokens so far, or of its own."""
    values: list[float] = np.ravel(answer.get("output_log_probs", ())).tolist()
    return values[before : before + count] if len(values) >= before + count else values[:count]
