"""The `tensorrt_llm` model on vLLM's asynchronous engine: the tensors of the `llmapi` model, and its way to serve them.

The YAML beside it holds arguments of `AsyncEngineArgs`. Prompts are tokenized by the kit, as for every engine, and
speculation is counted from vLLM's own statistics (`vllm/v1/metrics/stats.py`, `spec_decode/metrics.py` of 0.32.0).
"""

import asyncio
import locale
import multiprocessing
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import RequestError
from engine.outputs import EngineStatistics
from engine.scheduler import EngineConfig
from engine.serving.llmapi import LlmApiModel
from engine.serving.llmapi_request import LlmApiRequest
from engine.serving.llmapi_response import Arrays, LlmApiAnswer
from engine.serving.metrics import EngineMetrics
from engine.vllm import plugin
from engine.vllm.cpu import prepare_worker

SOURCE = "vllm"
UNCOUNTED = "none"
# Argument by which it counts drafts for each request; 0.24.0, the release of NVIDIA's image, does not know it.
_PER_REQUEST = "per_request_spec_decode_metrics"
# Arguments of the `llmapi` model's sampling that vLLM calls otherwise, or has no use for.
_RENAMED = {"bad": "bad_words"}
_DROPPED = ("return_perf_metrics", "end_id", "best_of", "exclude_input_from_output")


class VllmModel(LlmApiModel):
    """Hands requests to an `AsyncLLM`."""

    def _prepare(self, content: Mapping[str, Any], arguments: Mapping[str, str], directory: Path) -> None:
        # Python is embedded here: it reads files as ASCII, which PyTorch's are not, and the processes that vLLM spawns
        # cannot be started from this one's program.
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        multiprocessing.set_executable(shutil.which("python3") or "python3")
        there = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [there, str(directory)]))
        prepare_worker()
        plugin.allow()
        self._arguments = arguments
        self._draft_length = int((content.get("speculative_config") or {}).get("num_speculative_tokens", 0))
        self._statistics = EngineStatistics(self._draft_length)
        self._longest = int(content["max_model_len"])

    async def _load(self, content: dict[str, Any]) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        if self._codec is None:
            raise RequestError(f"{content['model']} has no tokenizer.json")
        if self._draft_length and _PER_REQUEST in AsyncEngineArgs.__dataclass_fields__:
            content = {**content, _PER_REQUEST: "summary"}
        self._metrics = EngineMetrics(self._statistics, self._arguments)
        self._metrics.declare_speculation(SOURCE)
        self._metrics.publish()
        counter = counting(self._statistics, self._metrics)
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**content), stat_loggers=[counter])
        config = engine.vllm_config
        self._cache = _Cache(config.cache_config.num_gpu_blocks, config.cache_config.block_size)
        limits = EngineConfig(max_batch_size=config.scheduler_config.max_num_seqs)
        self._metrics.declare_load(limits, self._cache)
        self._metrics.publish()
        return engine

    def _submit(self, wanted: LlmApiRequest, *, by_tokens: bool) -> "_Generation":
        """Stop words are looked for in the results, which come step by step, so vLLM is told nothing of them."""
        assert self._codec is not None
        try:
            sampling = _sampling_params(wanted)
        except ValueError as error:  # SamplingParams checks its arguments so
            raise RequestError(str(error)) from None
        tokens = self._codec.encode(wanted.prompt)
        if len(tokens) + sampling.max_tokens > self._longest:
            raise RequestError(
                f"{len(tokens)} prompt tokens and max_tokens {sampling.max_tokens} make "
                f"{len(tokens) + sampling.max_tokens}; the engine takes {self._longest}"
            )
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        if wanted.cache_salt:
            prompt["cache_salt"] = wanted.cache_salt
        return _Generation(self._llm, prompt, sampling)

    def _make_answer(self, wanted: LlmApiRequest) -> "VllmAnswer":
        return VllmAnswer(wanted, self._draft_length, self._cache.block_size)

    def finalize(self) -> None:
        """Unload the model."""
        super().finalize()
        self._metrics.close()


@dataclass
class _Cache:
    """The KV cache, as its metrics name it."""

    num_blocks: int
    block_size: int


class _Generation:
    """The results of one request, and its end before time."""

    def __init__(self, engine: Any, prompt: dict[str, Any], sampling: Any) -> None:
        self._engine, self._identity = engine, secrets.token_hex(16)
        self._results = engine.generate(prompt, sampling, self._identity)
        self._abortion: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        results: AsyncIterator[Any] = self._results
        return results

    def abort(self) -> None:
        """End it; the last result follows. Harmless if it has ended."""
        if self._abortion is None:
            self._abortion = asyncio.ensure_future(self._engine.abort(self._identity))


class VllmAnswer(LlmApiAnswer):
    """Makes the responses of one generation from vLLM's results."""

    def __init__(self, request: LlmApiRequest, draft_length: int, block_size: int) -> None:
        super().__init__(request, draft_length)
        self._block_size = block_size

    def _metrics(self, result: Any, tokens: int) -> Arrays:
        reused = (result.num_cached_tokens or 0) // self._block_size
        return {
            **super()._metrics(result, tokens),
            "kv_cache_reused_block": np.array([reused], np.int32),
            **_times(result.metrics),
            **self._speculation(result),
        }

    def _speculation(self, result: Any) -> Arrays:
        """vLLM counts for those that end by themselves; of one that is ended from outside, as at a stop word, it tells
        nothing, and 0.24.0 of none."""
        counted = getattr(result.outputs[0], "spec_decode_metrics", None)
        drafted = counted.num_draft_tokens if counted else 0
        accepted = sum(length * count for length, count in enumerate(counted.histogram)) if counted else 0
        return {
            "acceptance_rate": np.array([accepted / drafted if drafted else 0.0], np.float32),
            "total_accepted_draft_tokens": np.array([accepted], np.int32),
            "total_draft_tokens": np.array([drafted], np.int32),
            "acceptance_source": np.array([(SOURCE if counted else UNCOUNTED).encode()], np.object_),
        }


def counting(statistics: EngineStatistics, metrics: EngineMetrics) -> Any:
    """A logger class of vLLM's that counts its steps and publishes the counts."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Counter(StatLoggerBase):  # type: ignore[misc]
        """Called by the engine's output handler, in the event loop's thread, after every step."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            self._cache = vllm_config.cache_config

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if iteration_stats is not None:
                statistics.emitted_tokens += iteration_stats.num_generation_tokens
                statistics.request_steps += len(iteration_stats.inter_token_latencies_iter)
                statistics.request_steps += len(iteration_stats.time_to_first_tokens_iter)
            if scheduler_stats is not None:
                statistics.decoding = scheduler_stats.num_running_reqs
                statistics.waiting = scheduler_stats.num_waiting_reqs
                statistics.used_blocks = round(scheduler_stats.kv_cache_usage * self._cache.num_gpu_blocks)
                _count_drafts(statistics, scheduler_stats.spec_decoding_stats)
            metrics.publish()

        def log_engine_initialized(self) -> None:
            pass

    return Counter


def _count_drafts(statistics: EngineStatistics, counted: Any) -> None:
    if counted is None:
        return
    statistics.drafted_tokens += counted.num_draft_tokens
    statistics.accepted_tokens += counted.num_accepted_tokens
    for position in range(statistics.max_draft_length):
        statistics.drafted_by_position[position] += counted.num_draft_tokens_per_pos[position]
        statistics.accepted_by_position[position] += counted.num_accepted_tokens_per_pos[position]


def _sampling_params(wanted: LlmApiRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    given = {
        _RENAMED.get(name, name): value for name, value in wanted.sampling.items() if name not in _DROPPED
    }
    if wanted.sampling.get("best_of", 1) != 1:
        raise RequestError("sampling_param_best_of is not supported on vLLM; leave it out")
    if not wanted.sampling.get("exclude_input_from_output", True):
        raise RequestError(
            "sampling_param_exclude_input_from_output is false; on vLLM the output is all there is"
        )
    if "end_id" in wanted.sampling:
        given |= {"stop_token_ids": [wanted.sampling["end_id"]], "ignore_eos": True}
    if "temperature" not in given:
        given["temperature"] = 0.0
    if wanted.guide is not None:
        given["structured_outputs"] = StructuredOutputsParams(**wanted.guide)
    return SamplingParams(**given)


def _times(stats: Any) -> Arrays:
    """Times since the epoch; all but the arrival are on a clock of their own."""
    if stats is None:
        return {}
    shift = time.time() - time.monotonic()
    seconds = {
        "arrival_time_ns": stats.arrival_time,
        "first_scheduled_time_ns": stats.scheduled_ts + shift,
        "first_token_time_ns": stats.first_token_ts + shift,
        "last_token_time_ns": stats.last_token_ts + shift,
    }
    return {name: np.array([int(value * 1e9)], np.int64) for name, value in seconds.items()}
