"""What is counted of a request's steps: on the request itself, and on the engine.

Only what was given out counts: no draft tokens beyond the end, no step for the end token alone. A draft that came with
the request is counted as a whole, when the request ends.
"""

import time

from engine.gate import Release
from engine.outputs import EngineStatistics
from engine.running import RunningRequest


def count(item: RunningRequest, release: Release, statistics: EngineStatistics) -> None:
    """Count what is given out now."""
    metrics = item.metrics
    metrics.num_output_tokens = item.gate.given
    if release.tokens:
        metrics.last_token_ns = time.time_ns()
        metrics.first_token_ns = metrics.first_token_ns or metrics.last_token_ns
    for step in release.steps:
        metrics.steps += int(step.emitted > 0)
        statistics.request_steps += int(step.emitted > 0)
        statistics.emitted_tokens += step.emitted
        _count_draft(item, statistics, step.nodes, step.depth, step.accepted)
    if item.request.draft and release.steps and item.finish_reason:
        nodes = min(len(item.request.draft), item.request.max_tokens - 1)
        _count_draft(item, statistics, nodes, nodes, min(nodes, item.agreement, item.gate.given))


def _count_draft(
    item: RunningRequest, statistics: EngineStatistics, nodes: int, depth: int, accepted: int
) -> None:
    if nodes:
        item.metrics.total_draft_tokens += nodes
        item.metrics.total_accepted_draft_tokens += accepted
        statistics.count_draft(nodes, depth, accepted)
