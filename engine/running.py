"""State of one admitted request."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.draft_length import DraftLength
from engine.events import FinishReason, RequestMetrics, Sink
from engine.request import GenerationRequest
from engine.runner import SequenceInput
from engine.sampling import RequestRandom
from speculators.tree import TokenTree

SHORTEST_CHUNK = 3  # room for a chunk of two tokens that leaves none alone


@dataclass(slots=True, eq=False)
class RunningRequest:
    """One request from admission to its last token.

    Invariant: `cached` rows of `prompt + output` lie in the cache. While the prompt is read, `cached` is at
    most its length; afterwards everything but the last emitted token is cached, and that token is the root of
    the next step's tree.
    """

    # Set by admission.
    id: int
    request: GenerationRequest
    sink: Sink
    metrics: RequestMetrics
    blocks: list[int]
    random: RequestRandom
    draft_length: DraftLength
    # Set by steps.
    cached: int = 0
    output: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def in_prefill(self) -> bool:
        """Whether part of the prompt is still to be read."""
        return self.cached < len(self.request.prompt)

    @property
    def draft_budget(self) -> int:
        """Most tokens that may be drafted now: the step emits one more than it accepts."""
        return min(self.draft_length.current, self.request.max_tokens - len(self.output) - 1)

    def next_chunk(self, limit: int) -> SequenceInput:
        """The next part of the prompt, of at most `limit` tokens (SHORTEST_CHUNK or more).

        No part is a single token unless the prompt is: see the promise in `engine.runner`.
        """
        left = len(self.request.prompt) - self.cached
        size = min(limit, left)
        size -= left - size == 1
        tokens = self.request.prompt[self.cached : self.cached + size]
        return SequenceInput(
            tokens, self.cached, self.blocks, is_prompt=True, logits_from=size - 1 if size == left else size
        )

    def next_tree(self, tree: TokenTree) -> SequenceInput:
        """The last emitted token and the draft below it."""
        tokens = (self.output[-1], *tree.tokens)
        if tree.parents == tuple(range(-1, len(tree) - 1)):
            return SequenceInput(tokens, self.cached, self.blocks)
        return SequenceInput(
            tokens, self.cached, self.blocks, depths=(0, *tree.depths), mask=tree.ancestor_mask()
        )

    def ban_early_end(self, logits: NDArray[np.float32], depths: tuple[int, ...]) -> None:
        """Take the end tokens out of the rows whose token would come before `min_tokens`."""
        banned = list(self.request.end_ids)
        for row, depth in enumerate(depths):
            if len(self.output) + depth < self.request.min_tokens:
                logits[row, banned] = -np.inf

    def emit(self, tokens: list[int]) -> list[int]:
        """Append tokens up to whatever ends the request, and set `finish_reason`; returns those appended."""
        request, now = self.request, time.time_ns()
        taken: list[int] = []
        for token in tokens:
            if token in request.end_ids:
                self.finish_reason = "stop"
                break
            self.output.append(token)
            taken.append(token)
            if any(tuple(self.output[-len(stop) :]) == stop for stop in request.stop_sequences):
                self.finish_reason = "stop"
                break
            if len(self.output) == request.max_tokens:
                self.finish_reason = "length"
                break
        self.metrics.num_output_tokens = len(self.output)
        self.metrics.first_token_ns = self.metrics.first_token_ns or now
        self.metrics.last_token_ns = now
        return taken
