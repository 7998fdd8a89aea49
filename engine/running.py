"""State of one admitted request."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from engine.gate import Gate
from engine.outputs import FinishReason, OutputCallback, RequestMetrics
from engine.request import GenerationRequest
from engine.runner import SequenceInput
from engine.sampling import RequestRandom
from speculators.graphs import DrafterRows
from speculators.tree import TokenTree

_LONGEST_TAIL = 8  # tokens of a continuation that a step takes in beside the draft


@dataclass(slots=True, eq=False)
class RunningRequest:
    """One request from admission to its last token.

    Invariant: `cached` rows of `prompt + output` lie in the cache. While the prompt is read, `cached` is at
    most its length; afterwards everything but the last emitted token is cached, and that token is the root of
    the next step's tree. A continuation has been decoding before: the last token of its prompt is such a root, and
    tokens before it whose rows are not at hand are computed as decoded tokens, not as part of the prompt.
    """

    # Set by admission.
    id: int
    request: GenerationRequest
    callback: OutputCallback
    metrics: RequestMetrics
    random: RequestRandom
    gate: Gate
    arrived: float  # by the monotonic clock
    speculators: tuple[str, ...] = ()  # those that may draft for it
    blocks: Sequence[int] = ()
    rows: Sequence[DrafterRows] = ()  # of each of the engine's drafters
    # Set by steps.
    cached: int = 0
    output: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @classmethod
    def begin(cls, identity: int, request: GenerationRequest, callback: OutputCallback) -> "RunningRequest":
        """A request that has just arrived."""
        return cls(
            id=identity,
            request=request,
            callback=callback,
            metrics=RequestMetrics(num_input_tokens=len(request.prompt), arrival_ns=time.time_ns()),
            random=RequestRandom(request.sampling.seed, request.continued),
            gate=Gate.of(request),
            arrived=time.monotonic(),
        )

    @property
    def in_prefill(self) -> bool:
        """Whether tokens are still to be read before the request can decode."""
        request = self.request
        if self.cached < request.prompt_length:
            return True
        return len(request.prompt) - self.cached > (1 if self.speculates else _LONGEST_TAIL)

    @property
    def speculates(self) -> bool:
        """Whether the engine drafts for it; if not, it brings its own draft or wants none."""
        return bool(self.speculators) and not self.request.draft

    @property
    def agreement(self) -> int:
        """Leading tokens of the output that are those of the request's own draft."""
        pairs = zip(self.request.draft, self.output, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    @property
    def room(self) -> int:
        """Most tokens that may be drafted now: the step emits one more than it accepts."""
        return self.request.max_tokens - len(self.output) - 1

    def known(self, first: int) -> tuple[int, ...]:
        """Prompt and output from a position on."""
        length = len(self.request.prompt)
        return (*self.request.prompt[first:], *self.output[max(0, first - length) :])

    def reusable(self) -> tuple[int, ...]:
        """The tokens whose rows others may take over."""
        return self.known(0)[: self.cached]

    def next_chunk(self, limit: int, weighed: int = 0) -> SequenceInput:
        """The next part of what is to be read, of at most `limit` tokens (SHORTEST_CHUNK or more).

        If `weighed` tokens are to be weighed, the last part of a prompt is at most as long, and is weighed. No part of
        the prompt is a single token unless the prompt is: see the promise in `engine.runner`.
        """
        length = self.request.prompt_length
        if self.cached >= length:
            end = min(self.cached + limit, len(self.request.prompt) - 1)
            tokens = self.request.prompt[self.cached : end]
            return SequenceInput(tokens, self.cached, self.blocks, logits_from=len(tokens))
        left = length - self.cached
        size = min(limit, max(left - weighed, 2) if left > weighed > 0 else left)
        size -= left - size == 1
        wanted = size == left and not self.request.continued
        tokens = self.request.prompt[self.cached : self.cached + size]
        return SequenceInput(
            tokens,
            self.cached,
            self.blocks,
            is_prompt=True,
            logits_from=size - int(wanted),
            weighed=wanted and size <= weighed,
        )

    def next_tree(self, tree: TokenTree, weighed: int = 0) -> SequenceInput:
        """What is not cached, as a rule the last emitted token alone, and the draft below it.

        It is weighed if it has no more than `weighed` tokens.
        """
        tail = self.known(self.cached)
        tokens, root = (*tail, *tree.tokens), len(tail) - 1
        # Branches come from the engine's own speculator, whose requests have a tail of one token.
        parents = None if tree.is_chain else (0, *(parent + 1 for parent in tree.parents))
        return SequenceInput(
            tokens,
            self.cached,
            self.blocks,
            parents=parents,
            logits_from=root,
            weighed=len(tokens) <= weighed,
        )

    @property
    def wants_logits(self) -> bool:
        """Whether more of a row's logits is asked for than the greatest."""
        request = self.request
        early = len(self.output) < request.min_tokens
        return early or request.return_log_probs or not request.sampling.greedy

    def ban_early_end(self, logits: NDArray[np.float32], depths: tuple[int, ...]) -> None:
        """Take the end tokens out of the rows whose token would come before `min_tokens`."""
        banned = list(self.request.end_ids)
        for row, depth in enumerate(depths):
            if len(self.output) + depth < self.request.min_tokens:
                logits[row, banned] = -np.inf

    def emit(self, tokens: list[int]) -> list[int]:
        """Append tokens up to whatever ends the request, and set `finish_reason`; returns those appended."""
        request = self.request
        taken: list[int] = []
        for token in tokens:
            if token in request.end_ids:
                self.finish_reason = "stop"
                break
            self.output.append(token)
            taken.append(token)
            if self.gate.add(token):
                self.finish_reason = "stop"
                break
            if len(self.output) == request.max_tokens:
                self.finish_reason = "length"
                break
        return taken
