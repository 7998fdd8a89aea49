"""openvino-genai on the GGUF file: plain or with prompt lookup.

Runs in an environment of its own. Prompt lookup reports no accepted tokens, but the tokens of every iteration.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino
import openvino_genai

from planner.bench.peers.protocol import Answer, Generate, serve, without_end


def load(settings: Mapping[str, Any]) -> tuple[Mapping[str, str], Generate]:
    """Load `settings["model"]`; see `planner.bench.peers.arms` for the keys."""
    threads = {"INFERENCE_NUM_THREADS": settings["threads"]}
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # every answer reads its whole prompt, as with the other engines
    options: dict[str, Any] = {"scheduler_config": scheduler, **threads}
    if settings["method"] == "prompt_lookup":
        options["prompt_lookup"] = True
    pipeline = openvino_genai.LLMPipeline(settings["model"], "CPU", **options)
    config = _configuration(settings)

    def generate(prompt: list[int], max_tokens: int) -> Answer:
        config.max_new_tokens = max_tokens
        ids = np.array([prompt], np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        started = time.perf_counter()
        result = pipeline.generate(inputs, config)
        seconds = time.perf_counter() - started
        metrics = result.perf_metrics
        steps = len(metrics.raw_metrics.m_batch_sizes)
        tokens = without_end(result.tokens[0], settings["end_ids"])
        return Answer(tokens, seconds, metrics.get_ttft().mean / 1e3, steps)

    return {"openvino-genai": openvino_genai.get_version()}, generate


def _configuration(settings: Mapping[str, Any]) -> Any:
    config = openvino_genai.GenerationConfig()
    config.do_sample = False
    config.eos_token_id = settings["end_ids"][0]
    config.stop_token_ids = set(settings["end_ids"])
    if settings["method"] != "none":
        config.num_assistant_tokens = settings["draft_length"]
    if settings["method"] == "prompt_lookup":
        config.max_ngram_size = settings["ngram"]
    return config


if __name__ == "__main__":
    serve(load)
