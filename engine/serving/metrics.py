"""Speculation counters and load gauges on Triton's own `/metrics`.

Names are those that TensorRT-LLM 1.3 exports (`trtllm_spec_decode_*`, positions counted from 1) and, for load,
the families of its Triton backend (`nv_trt_llm_*`), so dashboards made for one work with the other. Two counters
are the kit's own: `drafthouse_spec_tokens_total` over `drafthouse_spec_steps_total` is the acceptance length in
any interval; `deploy/exporter` exports the same two for servers that do not.

Triton's custom metrics crash the server when two threads touch them, so all use of them passes one lock; and each
change of a value is a message to the server that the thread waits for, so values are published when all falls
idle and otherwise ten times a second.
"""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from engine.control.decisions import Decisions, LevelCounts
from engine.outputs import EngineStatistics
from engine.scheduler import EngineConfig

_PERIOD_SECONDS = 0.1
_Value = Callable[[], float | None]
"""A figure; None while it is undefined."""


class _Cache(Protocol):
    num_blocks: int
    block_size: int


class EngineMetrics:
    """Publishes an engine's statistics: those parts of them that have been declared."""

    def __init__(self, statistics: EngineStatistics, arguments: Mapping[str, str]) -> None:
        """Take Triton's `initialize` arguments for the labels, as NVIDIA's backend has them: model and version."""
        self._statistics = statistics
        self._labels = {"model": arguments["model_name"], "version": arguments["model_version"]}
        self._families: list[Any] = []  # Triton drops a family with its last reference
        self._series: list[_Series] = []
        self._next_time = 0.0
        self._lock = threading.Lock()

    def publish(self) -> None:
        """Bring the exported values up to date, if they are due."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next_time or not self._statistics.active:
                self._next_time = now + _PERIOD_SECONDS
                for series in self._series:
                    series.publish()

    def close(self) -> None:
        """Give the families back; the Python backend crashes if they outlive the model."""
        with self._lock:
            self._series.clear()
            self._families.clear()

    def declare_speculation(self, source: str) -> None:
        """What was drafted, accepted and emitted; `source` says who counted it."""
        now = self._statistics
        counters: dict[str, tuple[str, Callable[[], float]]] = {
            "trtllm_spec_decode_num_draft_tokens_total": ("Drafted tokens", lambda: now.drafted_tokens),
            "trtllm_spec_decode_num_accepted_tokens_total": (
                "Drafted tokens that were accepted",
                lambda: now.accepted_tokens,
            ),
        }
        for name, (description, value) in counters.items():
            self._add(self._family(name, description, counter=True), {}, value, counter=True)
        emitted: dict[str, tuple[str, Callable[[], float]]] = {
            "drafthouse_spec_tokens_total": ("Tokens emitted", lambda: now.emitted_tokens),
            "drafthouse_spec_steps_total": (
                "Steps of requests that emitted tokens",
                lambda: now.request_steps,
            ),
        }
        for name, (description, value) in emitted.items():
            family = self._family(name, description, counter=True)
            self._add(family, {"source": source}, value, counter=True)
        by_position: dict[str, tuple[str, list[int]]] = {
            "trtllm_spec_decode_drafted_tokens_total": (
                "Drafts that reached so deep",
                now.drafted_by_position,
            ),
            "trtllm_spec_decode_accepted_tokens_total": (
                "Drafts that were accepted so deep",
                now.accepted_by_position,
            ),
        }
        for name, (description, values) in by_position.items():
            family = self._family(name, description, counter=True)
            for position in range(now.max_draft_length):
                labels = {"token_position": str(position + 1)}
                self._add(family, labels, partial(values.__getitem__, position), counter=True)
        gauges: dict[str, tuple[str, _Value]] = {
            "trtllm_spec_decode_acceptance_length": (
                "Tokens per step of a request; 0 before the first",
                lambda: now.tokens_per_step,
            ),
            "trtllm_avg_decoded_tokens_per_iter": (
                "Tokens per step of a request; 0 before the first",
                lambda: now.tokens_per_step,
            ),
            "trtllm_spec_decode_draft_overhead": (
                "Share of step time spent drafting",
                lambda: now.draft_seconds / (now.step_seconds or 1.0),
            ),
        }
        for name, (description, gauge) in gauges.items():
            self._add(self._family(name, description), {}, gauge)

    def declare_attention(self, attention: Mapping[str, str]) -> None:
        """Which kernel runs, and what the cache is in; see `engine.backend.PagedNetwork`."""
        family = self._family("drafthouse_attention_info", "Attention kernel and KV cache, in the labels")
        self._add(family, dict(attention), lambda: 1.0)

    def declare_decisions(self, decisions: Decisions) -> None:
        """What a controller chose at which batch, what it expected of that, and what came."""
        chosen = {
            "drafthouse_plan_steps_total": ("Steps by what was drafted with", "steps"),
            "drafthouse_plan_draft_tokens_total": ("Draft tokens that were verified in them", "nodes"),
        }
        for name, (description, key) in chosen.items():
            family = self._family(name, description, counter=True)
            for batch, counts in decisions.levels.items():
                values: Mapping[str, int] = getattr(counts, key)
                for deployment in values:
                    labels = {"batch": str(batch), "deployment": deployment}
                    self._add(family, labels, partial(values.__getitem__, deployment), counter=True)
        compared: dict[str, tuple[str, Mapping[str, Callable[[LevelCounts], float]]]] = {
            "drafthouse_plan_tokens_total": (
                "Tokens of steps: expected, and emitted",
                {"expected": lambda now: now.expected_tokens, "emitted": lambda now: now.emitted_tokens},
            ),
            "drafthouse_plan_seconds_total": (
                "Time of steps that read no prompt: by the plan's table, by the corrected one, and by the clock",
                {
                    "planned": lambda now: now.planned_ms / 1e3,
                    "expected": lambda now: now.expected_ms / 1e3,
                    "measured": lambda now: now.measured_ms / 1e3,
                },
            ),
        }
        for name, (description, sources) in compared.items():
            family = self._family(name, description, counter=True)
            for batch, counts in decisions.levels.items():
                for source, value in sources.items():
                    self._add(
                        family, {"batch": str(batch), "source": source}, partial(value, counts), counter=True
                    )

    def declare_load(self, config: EngineConfig, cache: _Cache) -> None:
        """Requests by state, and cache blocks."""
        now = self._statistics
        requests: dict[str, Callable[[], float]] = {
            "active": lambda: now.active,
            "max": lambda: config.max_batch_size,
            "scheduled": lambda: now.prefilling + now.decoding,
            "context": lambda: now.prefilling,
            "waiting": lambda: now.waiting,
        }
        family = self._family("nv_trt_llm_request_metrics", "Requests by state")
        for state, value in requests.items():
            self._add(family, {"request_type": state}, value)
        blocks: dict[str, Callable[[], float]] = {
            "max": lambda: cache.num_blocks,
            "free": lambda: cache.num_blocks - now.used_blocks,
            "used": lambda: now.used_blocks,
            "tokens_per": lambda: cache.block_size,
            "reused": lambda: now.reused_blocks,
            "fraction": lambda: now.used_blocks / cache.num_blocks,
        }
        family = self._family("nv_trt_llm_kv_cache_block_metrics", "KV cache blocks")
        for kind, value in blocks.items():
            self._add(family, {"kv_cache_block_type": kind}, value)

    def _family(self, name: str, description: str, *, counter: bool = False) -> Any:
        kind = pb_utils.MetricFamily.COUNTER if counter else pb_utils.MetricFamily.GAUGE
        self._families.append(pb_utils.MetricFamily(name=name, description=description, kind=kind))
        return self._families[-1]

    def _add(self, family: Any, labels: dict[str, str], value: _Value, *, counter: bool = False) -> None:
        metric = family.Metric(labels={**self._labels, **labels})
        self._series.append(_Series(metric, value, counter))


class _Series:
    """One exported value; it is sent only when it has changed, counters as the difference."""

    def __init__(self, metric: Any, value: _Value, counter: bool) -> None:
        self._metric, self._value, self._counter = metric, value, counter
        self._published = 0.0

    def publish(self) -> None:
        value = self._value()
        if value is not None and value != self._published:
            if self._counter:
                self._metric.increment(value - self._published)
            else:
                self._metric.set(value)
            self._published = value
