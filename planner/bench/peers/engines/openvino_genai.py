"""openvino-genai on the GGUF file: plain or with prompt lookup.

Runs in an environment of its own. Its pipeline for continuous batching is stepped by hand, and what each step has put
out for a request is read at once: so times and steps are known for each, of which it reports neither.
"""

import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino
import openvino_genai

from planner.bench.peers.protocol import Answer, Emission, Generate, serve


def load(settings: Mapping[str, Any]) -> tuple[Mapping[str, str], Generate]:
    """Load `settings["model"]`; see `planner.bench.peers.arms` for the keys."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # every answer reads its whole prompt, as with the other engines
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": settings["threads"]}
    if settings["method"] == "prompt_lookup":
        options["prompt_lookup"] = True
    pipeline = openvino_genai.ContinuousBatchingPipeline(settings["model"], scheduler, "CPU", options)
    config, count = _configuration(settings), itertools.count()

    def generate(prompts: list[list[int]], max_tokens: int, _seed: int) -> list[Answer]:
        config.max_new_tokens = max_tokens
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        started = time.perf_counter()
        emissions = [Emission(started) for _ in prompts]
        running = [
            (pipeline.add_request(next(count), ids, config), emission)
            for ids, emission in zip(inputs, emissions, strict=True)
        ]
        while running:
            pipeline.step()
            running = [(handle, emission) for handle, emission in running if _goes_on(handle, emission)]
        return [emission.answer(settings["end_ids"]) for emission in emissions]

    return {"openvino-genai": openvino_genai.get_version()}, generate


def _goes_on(handle: Any, emission: Emission) -> bool:
    """Take in what a step has put out for a request; whether there is more to come."""
    tokens: list[int] = []
    while handle.can_read():  # several where a draft was accepted
        tokens += handle.read()[0].generated_ids
    status = handle.get_status()
    running = status == openvino_genai.GenerationStatus.RUNNING
    if not running and status != openvino_genai.GenerationStatus.FINISHED:
        raise RuntimeError(f"a request has ended with {status}")
    if tokens or not running:
        emission.add(tokens)
    return bool(running)


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
