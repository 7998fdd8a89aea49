"""Acceptance from servers that count it: Triton with the embedded engine, and `trtllm-serve`.

Names of `trtllm-serve`: `tensorrt_llm/metrics/collector.py` (1.3, PRs #12545 and #12636) and the `specDecodingStats` of
its iteration statistics (`cpp/include/tensorrt_llm/executor/types.h`; camel case on the wire).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.exporter.exposition import Sample, parse_samples
from deploy.exporter.fetch import Unanswered, get_json, get_text

DRAFTED, ACCEPTED = (
    "trtllm_spec_decode_num_draft_tokens_total",
    "trtllm_spec_decode_num_accepted_tokens_total",
)
DRAFTED_AT, ACCEPTED_AT = (
    "trtllm_spec_decode_drafted_tokens_total",
    "trtllm_spec_decode_accepted_tokens_total",
)


@dataclass(frozen=True)
class Counts:
    """What a source has counted; None: it does not know.

    `tokens` / `steps` is the acceptance length. `drafted_at[d]` counts steps that proposed a d-th token (from 1),
    `accepted_at[d]` those in which it was accepted.
    """

    tokens: float | None = None
    steps: float | None = None
    drafted: float | None = None
    accepted: float | None = None
    drafted_at: Mapping[int, float] = field(default_factory=dict)
    accepted_at: Mapping[int, float] = field(default_factory=dict)


def counts_itself(triton_metrics: str) -> bool:
    """Whether Triton's `/metrics` at that address has the speculative families.

    Raises:
        Unanswered: it cannot be read.
    """
    return any(sample.name == DRAFTED for sample in parse_samples(get_text(triton_metrics)))


def read_trtllm_prometheus(server: str) -> Counts | None:
    """Counts since the start of a `trtllm-serve`, None where it does not export any (before 1.3).

    Raises:
        Unanswered: it has no such page; `return_perf_metrics: true` mounts it.
    """
    samples = list(parse_samples(get_text(f"{server}/prometheus/metrics")))
    drafted, accepted = _total(samples, DRAFTED), _total(samples, ACCEPTED)
    if not drafted or accepted is None:  # a zero may mean that `enable_iter_perf_stats` is off
        return None
    drafted_at, accepted_at = _by_position(samples, DRAFTED_AT), _by_position(samples, ACCEPTED_AT)
    steps = drafted_at.get(1)  # every step that drafts at all drafts a first token
    tokens = None if steps is None else steps + sum(accepted_at.values())
    return Counts(tokens, steps, drafted, accepted, drafted_at, accepted_at)


def read_iteration_stats(server: str) -> Counts | None:
    """Counts since the last call, which drained the queue; None if no iteration speculated.

    Raises:
        Unanswered: it has no such page, or the page is no list of iterations.
    """
    iterations = get_json(f"{server}/metrics")
    if not isinstance(iterations, list):
        raise Unanswered(f"{server}/metrics is not a list of iterations")
    try:
        found = [spec for spec in map(_speculation, iterations) if spec]
    except ValueError:
        raise Unanswered(f"{server}/metrics lists something that is no iteration") from None
    if not found:
        return None
    drafted, accepted, steps = (
        float(sum(spec[name] for spec in found))
        for name in ("numDraftTokens", "numAcceptedTokens", "numRequestsWithDraftTokens")
    )
    return Counts(accepted + steps, steps, drafted, accepted)


def _speculation(iteration: Any) -> Mapping[str, Any] | None:
    """The speculative part of one iteration, if a draft was verified in it.

    With attention data parallelism every rank repeats the counts of rank 0.
    """
    if isinstance(iteration, str):  # some releases list JSON documents as strings
        iteration = json.loads(iteration)
    if not isinstance(iteration, dict) or iteration.get("attentionDpRank", 0):
        return None
    spec = iteration.get("specDecodingStats")
    return spec if isinstance(spec, dict) and spec.get("numDraftTokens") else None


def _total(samples: Iterable[Sample], name: str) -> float | None:
    values = [sample.value for sample in samples if sample.name == name]
    return sum(values) if values else None


def _by_position(samples: Iterable[Sample], name: str) -> dict[int, float]:
    totals: dict[int, float] = {}
    for sample in samples:
        position = sample.labels.get("token_position", "")
        if sample.name == name and position.isdigit():
            totals[int(position)] = totals.get(int(position), 0.0) + sample.value
    return totals
