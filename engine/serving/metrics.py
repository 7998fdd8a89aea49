"""Speculation counters and load gauges on Triton's own `/metrics`.

Names are those that TensorRT-LLM 1.3 exports (`trtllm_spec_decode_*`, positions counted from 1) and, for load, the
families of its Triton backend (`nv_trt_llm_*`), so dashboards made for one work with the other. Triton's custom
metrics crash the server when two threads touch them; `publish` is called from the engine's thread alone.
"""

from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from engine.engine import EngineLimits
from engine.events import EngineStatistics


class _Cache(Protocol):
    num_blocks: int
    block_size: int


class EngineMetrics:
    """Publishes an engine's statistics."""

    def __init__(self, statistics: EngineStatistics, limits: EngineLimits, cache: _Cache) -> None:
        self._statistics = statistics
        self._limits = limits
        self._cache = cache
        self._published: dict[int, float] = {}
        self._families: list[Any] = []
        positions = [str(position) for position in range(1, statistics.max_draft_length + 1)]
        self._drafted_total = self._counter("trtllm_spec_decode_num_draft_tokens_total", "Drafted tokens")
        self._accepted_total = self._counter(
            "trtllm_spec_decode_num_accepted_tokens_total", "Accepted drafted tokens"
        )
        self._drafted = self._by_label(
            "trtllm_spec_decode_drafted_tokens_total", "Steps that drafted so deep", positions
        )
        self._accepted = self._by_label(
            "trtllm_spec_decode_accepted_tokens_total", "Steps that accepted so deep", positions
        )
        self._length = self._gauge(
            "trtllm_spec_decode_acceptance_length", "Tokens per step of a request, since start"
        )
        self._overhead = self._gauge("trtllm_spec_decode_draft_overhead", "Share of step time spent drafting")
        self._decoded = self._gauge(
            "trtllm_avg_decoded_tokens_per_iter", "Tokens per step of a request, since start"
        )
        self._requests = self._gauges(
            "nv_trt_llm_request_metrics",
            "Requests by state",
            "request_type",
            ("active", "max", "scheduled", "context", "waiting"),
        )
        self._blocks = self._gauges(
            "nv_trt_llm_kv_cache_block_metrics",
            "KV cache blocks",
            "kv_cache_block_type",
            ("max", "free", "used", "tokens_per"),
        )
        self.publish()

    def publish(self) -> None:
        """Bring the exported values up to date."""
        now = self._statistics
        for position, metric in enumerate(self._drafted):
            self._raise_to(metric, now.drafted_by_position[position])
        for position, metric in enumerate(self._accepted):
            self._raise_to(metric, now.accepted_by_position[position])
        self._raise_to(self._drafted_total, now.drafted_tokens)
        self._raise_to(self._accepted_total, now.accepted_tokens)
        length = now.emitted_tokens / now.request_steps if now.request_steps else 0.0
        self._length.set(length)
        self._decoded.set(length)
        self._overhead.set(now.draft_seconds / now.step_seconds if now.step_seconds else 0.0)
        running = now.prefilling + now.decoding
        states = (running + now.waiting, self._limits.max_batch_size, running, now.prefilling, now.waiting)
        for metric, value in zip(self._requests, states, strict=True):
            metric.set(value)
        total = self._cache.num_blocks
        for metric, value in zip(
            self._blocks,
            (total, total - now.used_blocks, now.used_blocks, self._cache.block_size),
            strict=True,
        ):
            metric.set(value)

    def _raise_to(self, metric: Any, value: float) -> None:
        """Counters can only be raised, by the difference to what was published."""
        change = value - self._published.get(id(metric), 0.0)
        if change > 0:
            metric.increment(change)
            self._published[id(metric)] = value

    def _family(self, name: str, description: str, kind: int) -> Any:
        family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._families.append(family)
        return family

    def _counter(self, name: str, description: str) -> Any:
        return self._family(name, description, pb_utils.MetricFamily.COUNTER).Metric(labels={})

    def _by_label(self, name: str, description: str, positions: list[str]) -> list[Any]:
        family = self._family(name, description, pb_utils.MetricFamily.COUNTER)
        return [family.Metric(labels={"token_position": position}) for position in positions]

    def _gauge(self, name: str, description: str) -> Any:
        return self._family(name, description, pb_utils.MetricFamily.GAUGE).Metric(labels={})

    def _gauges(self, name: str, description: str, label: str, values: tuple[str, ...]) -> list[Any]:
        family = self._family(name, description, pb_utils.MetricFamily.GAUGE)
        return [family.Metric(labels={label: value}) for value in values]
