"""vLLM on the target's Hugging Face directory: plain, or with any of its ways of speculating.

Runs in an environment of its own. The engine is stepped by hand: what it puts out of one step comes back at once, so
steps are counted, not derived. Acceptance by position is vLLM's own record of each verification.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import vllm
from vllm import LLM, SamplingParams

from engine.vllm.cpu import prepare_worker
from planner.bench.peers.protocol import Answer, Generate, by_depth, serve


def load(settings: Mapping[str, Any]) -> tuple[Mapping[str, str], Generate]:
    """Load `settings["arguments"]`, those of `LLM`, on `settings["threads"]` threads."""
    arguments = dict(settings["arguments"])
    speculates = "speculative_config" in arguments
    prepare_worker(settings["threads"])
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler in this process
    llm = LLM(
        **arguments,
        **({"per_request_spec_decode_metrics": "detailed"} if speculates else {}),
        enforce_eager=True,
        enable_prefix_caching=False,  # every answer reads its whole prompt, as with the other engines
        disable_log_stats=False,
    )
    engine, count = llm.llm_engine, 0

    def generate(prompt: list[int], max_tokens: int) -> Answer:
        nonlocal count
        count += 1
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, stop_token_ids=settings["end_ids"])
        started = time.perf_counter()
        engine.add_request(str(count), {"prompt_token_ids": prompt}, sampling)
        steps, first, output = 0, 0.0, None
        tokens: list[int] = []
        while engine.has_unfinished_requests():
            for output in engine.step():
                grown = len(output.outputs[0].token_ids) > len(tokens)
                tokens = list(output.outputs[0].token_ids)
                steps += grown
                first = first or time.perf_counter() - started
        seconds = time.perf_counter() - started
        assert output is not None
        if tokens and tokens[-1] in settings["end_ids"]:
            tokens.pop()
        metrics = output.outputs[0].spec_decode_metrics
        drafted, accepted = (metrics.per_step_drafted, metrics.per_step_accepted) if metrics else ((), ())
        return Answer(tokens, seconds, first, steps, by_depth(drafted), by_depth(accepted))

    return {"vllm": vllm.__version__}, generate


if __name__ == "__main__":
    serve(load)
