"""The loop of `tensorrt_llm_bls`: draft, verify, emit; until the generation ends.

It knows three ends. Its length and stop words, which are text, it sees itself, over all calls. That the target met an
end token it sees from what comes back: every call emits one token of the target's own, which is not the draft's at
that place, so an answer that the draft begins with has been cut short. It must not be cut short for another reason, so
no draft is longer than the target has room for.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

from engine.gate import Release, StepCount
from engine.outputs import FinishReason, RequestOutput
from engine.serving.drafting import Drafting
from engine.serving.target import Draft, Row, Target
from speculators.draft_length import DraftLength

Count = Callable[[int, int, int, float], None]
"""Told of each step: tokens drafted, accepted and emitted, and the seconds that drafting took."""


def speculate(
    row: Row,
    target: Target,
    drafting: Drafting,
    draft_length: DraftLength,
    gone: Callable[[], bool],
    count: Count,
) -> Iterator[RequestOutput]:
    """Generate a row, one output a verified step, the last one with a finish reason; none once the client is gone.

    Raises:
        pb_utils.TritonModelException: the target or the draft model refused.
    """
    finish: FinishReason | None = None
    seconds = 0.0
    while not finish:
        started = time.perf_counter()
        most = min(draft_length.current, row.request.max_tokens - len(row.output) - 1, target.room(row))
        draft = drafting.propose(row.output, most) if most > 0 else Draft()
        seconds += time.perf_counter() - started
        if gone():
            return
        step = target.verify(row, draft, gone)
        if gone():
            return
        taken, finish = _take(row, step.tokens)
        if not finish and tuple(step.tokens) == draft.tokens[: len(step.tokens)]:
            finish = "stop"
        pairs = zip(draft.tokens, taken, strict=False)
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        proposed = len(draft.tokens)
        if proposed:
            draft_length.update(proposed, proposed, agreed)
        row.gate.end_step(StepCount(len(taken), proposed, proposed, agreed), step.log_probs[: len(taken)])
        release = row.gate.release(ended=finish is not None)
        finish = "stop" if row.gate.stopped else finish
        for whole in release.steps:
            count(whole.nodes, whole.accepted, whole.emitted, seconds)
            seconds = 0.0
        if release.tokens or finish:
            yield _output(row, release, finish)


def _take(row: Row, tokens: Sequence[int]) -> tuple[tuple[int, ...], FinishReason | None]:
    """Append tokens up to whatever ends the output; those appended, and the end."""
    request, output = row.request, row.output
    first = len(output)
    finish: FinishReason | None = None
    for token in tokens:
        output.append(token)
        if row.gate.add(token):
            finish = "stop"
        elif len(output) == request.max_tokens:
            finish = "length"
        if finish:
            break
    return tuple(output[first:]), finish


def _output(row: Row, release: Release, finish: FinishReason | None) -> RequestOutput:
    metrics, now = row.metrics, time.time_ns()
    metrics.num_output_tokens = row.gate.given
    if release.tokens:
        metrics.first_token_ns = metrics.first_token_ns or now
        metrics.last_token_ns = now
    for step in release.steps:
        metrics.steps += int(step.emitted > 0)
        metrics.total_draft_tokens += step.nodes
        metrics.total_accepted_draft_tokens += step.accepted
    return RequestOutput(0, release.tokens, metrics, release.log_probs, finish, text_cut=release.cut)
