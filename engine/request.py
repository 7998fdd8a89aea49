"""What a caller may ask of the engine: a generation request and how to sample it, checked when they are made.

Example:
    >>> GenerationRequest(prompt=(1, 2, 3), max_tokens=8, sampling=SamplingParams(temperature=0.7, top_p=0.9))
    ...     # doctest: +ELLIPSIS
    GenerationRequest(prompt=(1, 2, 3), max_tokens=8, ...)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine.automaton import Automaton
from engine.errors import RequestError
from engine.stopping import StopWords, check_words

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn from the target's logits: temperature first, then top-k, then top-p.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all, 1 is greedy.
        top_p: keep the likeliest tokens up to and including the one at which their sum reaches this; 1
            keeps all.
        seed: 64-bit seed of the request's own random numbers.

    Raises:
        RequestError: a value is out of range or not finite.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(
                f"temperature is {self.temperature}; it must be a finite number, 0 (greedy) or more"
            )
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}; it must be 0 (keep all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (keep all tokens)")
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed is {self.seed}; it must fit in 64 bits, 0..{MAX_SEED}")

    @property
    def greedy(self) -> bool:
        """Whether every token is the likeliest one, so that no random number is drawn."""
        return self.temperature == 0 or self.top_k == 1


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: most tokens to emit, 1 or more.
        sampling: how to draw them.
        stop_sequences: token sequences that end the output; the one that was met is part of it.
        stop_words: words that end the output where they are met in its text, and are not part of it.
        end_ids: tokens that end the output and are not part of it.
        min_tokens: tokens to emit before an end token may come, at most ``max_tokens``.
        draft_length: most draft nodes a step for this request, 0 switches speculation off; None: the
            server's own.
        return_log_probs: whether to give the log-probability of each emitted token.
        draft: tokens that somebody else drafted to follow the prompt. The request then ends after one step
            that verifies them, with the accepted ones and one token of the target's own, as on TensorRT-LLM's
            `draft_tokens_external`; empty: the engine drafts for itself.
        continued: how many tokens at the end of ``prompt`` are output of earlier calls of this generation, fewer
            than the whole. They are computed as decoded tokens and the random numbers go on behind them, so the
            calls together give, bit for bit, what one call gives.
        cache_salt: KV cache rows are shared among requests of the same salt only, as with vLLM's and
            TensorRT-LLM's parameter of this name.

    Raises:
        RequestError: a value is out of range.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    end_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    draft_length: int | None = None
    return_log_probs: bool = False
    draft: tuple[int, ...] = ()
    continued: int = 0
    stop_words: StopWords | None = None
    stop_automaton: Automaton[int] | None = field(init=False, repr=False, compare=False, default=None)
    """Of the stop sequences."""
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("the prompt is empty; give at least one token")
        if min(self.prompt) < 0:
            raise RequestError(f"the prompt holds token {min(self.prompt)}; token ids start at 0")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; it must be 1 or more")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}; it must lie in 0..max_tokens ({self.max_tokens})"
            )
        if not all(self.stop_sequences):
            raise RequestError("a stop sequence is empty; give at least one token in each")
        check_words(self.stop_sequences, "stop_sequences", "tokens")
        if self.stop_sequences:
            object.__setattr__(self, "stop_automaton", Automaton(self.stop_sequences))
        if self.draft_length is not None and self.draft_length < 0:
            raise RequestError(f"draft_length is {self.draft_length}; it must be 0 (no speculation) or more")
        if self.draft and min(self.draft) < 0:
            raise RequestError(f"the draft holds token {min(self.draft)}; token ids start at 0")
        if not 0 <= self.continued < len(self.prompt):
            raise RequestError(
                f"continued is {self.continued}; it must lie in 0..{len(self.prompt) - 1}, since a first token "
                "cannot have been emitted"
            )

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt itself, without those that earlier calls emitted."""
        return len(self.prompt) - self.continued
