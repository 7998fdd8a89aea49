"""One streamed request, from which acceptance can be seen from outside.

With `stream` a chunk is what one decode step emitted: one token of the target's own and the draft tokens that were
accepted. So tokens over chunks is the acceptance length, whatever server it is. The request is sent to Triton's
generate extension, with the names that the model's own configuration declares: those of `inflight_batcher_llm`
(line A engines, the kit's ensemble) or of `llmapi`, whose figures are strings.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.exporter.fetch import Unanswered, get_json, post_events

MODELS = ("ensemble", "tensorrt_llm")  # tried in this order where no model is named
PROBE_SECONDS = 120.0
"""A whole probe takes no longer."""


class Unmeasured(Exception):
    """The server answered, but acceptance cannot be told from the answer; the text says why."""


@dataclass(frozen=True)
class Answer:
    """What a probe saw.

    `chunks` has the tokens of every decode step in order, if the model answers with token ids, and is empty
    otherwise. `drafted` and `accepted` are the request's own totals, None where it does not give them.
    """

    tokens: int
    steps: int
    chunks: tuple[int, ...]
    drafted: int | None
    accepted: int | None
    first_token_seconds: float
    seconds: float


@dataclass(frozen=True)
class Probe:
    """A request that can be sent again and again.

    `model` "" takes the first of `MODELS` that the server has; `draft_length` 0 is not known.
    """

    triton: str
    model: str
    prompt: str
    max_tokens: int
    draft_length: int

    def send(self) -> Answer:
        """Stream the request and count.

        Raises:
            Unanswered: the server is away or refuses the request.
            Unmeasured: the answer does not tell.
        """
        model, config = self._find_model()
        declared = {tensor["name"] for tensor in config.get("input", [])}
        fields = {name: value for name, value in self._fields().items() if name in declared}
        start = time.monotonic()
        events, times = [], []
        for event in post_events(f"{self.triton}/v2/models/{model}/generate_stream", fields, PROBE_SECONDS):
            events.append(event)
            times.append(time.monotonic() - start)
        if not events:
            raise Unmeasured(f"{model} streamed no chunk")
        return self._count(events, times)

    def _find_model(self) -> tuple[str, dict[str, Any]]:
        failure = Unanswered("no model")
        for model in [self.model] if self.model else MODELS:
            try:
                return model, get_json(f"{self.triton}/v2/models/{model}/config")
            except Unanswered as error:
                failure = error
        raise failure

    def _fields(self) -> dict[str, Any]:
        """What is asked for, by every name that it has in some contract."""
        fields: dict[str, Any] = {"text_input": self.prompt, "stream": True, "streaming": True}
        fields |= dict.fromkeys(("max_tokens", "sampling_param_max_tokens"), self.max_tokens)
        fields |= dict.fromkeys(("return_perf_metrics", "sampling_param_return_perf_metrics"), True)
        fields |= dict.fromkeys(("return_num_output_tokens", "return_finish_reason"), True)
        return fields | ({"num_draft_tokens": self.draft_length} if self.draft_length else {})

    def _count(self, events: Sequence[dict[str, Any]], times: Sequence[float]) -> Answer:
        last = events[-1]
        chunks = tuple(size for size in map(_ids, events) if size)
        tokens = sum(chunks) or _number(last, "num_output_tokens")
        if not tokens and _scalar(last.get("finish_reason")) == "length":
            tokens = self.max_tokens
        if not tokens and "num_output_tokens" in last:
            raise Unmeasured("the model answered the probe with no token at all; give it another --prompt")
        if not tokens:
            raise Unmeasured(
                "the answer says neither which tokens it has, nor how many, nor that it is full length"
            )
        drafted: int | None = _number(last, "total_draft_tokens")
        accepted: int | None = _number(last, "total_accepted_draft_tokens")
        if drafted:
            steps = tokens - (accepted or 0)
        else:  # speculation is off, or the server does not count (PyTorch path before PR #17082)
            drafted, accepted, steps = None, None, len(chunks or events)
        if steps != len(chunks):
            chunks = ()
        most = max(chunks, default=0)
        if (self.draft_length and most > self.draft_length + 1) or steps > tokens:
            raise Unmeasured(
                f"a chunk is not one decode step: {tokens} tokens, {steps} steps, {most} in one chunk"
            )
        return Answer(tokens, steps, chunks, drafted, accepted, times[0], times[-1])


def accepted_at(chunks: Iterable[int], position: int) -> int:
    """In how many of the steps the draft token at this position (from 1) was accepted."""
    return sum(size > position for size in chunks)


def _ids(event: dict[str, Any]) -> int:
    """How many token ids a chunk has; Triton writes a single element without its list."""
    ids = event.get("output_ids", [])
    return len(ids) if isinstance(ids, list) else 1


def _number(event: dict[str, Any], name: str) -> int:
    """A whole number, which `llmapi` writes as text; 0 if it is missing or no number."""
    try:
        return int(float(_scalar(event.get(name))))
    except (TypeError, ValueError, OverflowError):
        return 0


def _scalar(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value
