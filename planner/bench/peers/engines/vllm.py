"""vLLM on the target's Hugging Face directory: plain, or with any of its ways of speculating.

Runs in an environment of its own. The engine is stepped by hand: what it puts out of one step comes back at once, so
steps are counted, not derived, and each token has its time. Acceptance by position is vLLM's own record of each
verification.
"""

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import vllm
from vllm import LLM, SamplingParams

from engine.vllm.cpu import prepare_worker
from planner.bench.peers.protocol import Answer, Emission, Generate, by_depth, serve


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
    engine, count = llm.llm_engine, itertools.count()

    def generate(prompts: list[list[int]], max_tokens: int, _seed: int) -> list[Answer]:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, stop_token_ids=settings["end_ids"])
        started = time.perf_counter()
        emissions = {str(next(count)): Emission(started) for _ in prompts}
        for name, prompt in zip(emissions, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        ended: dict[str, Any] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                emission = emissions[output.request_id]
                emission.add(output.outputs[0].token_ids[len(emission.tokens) :])
                ended[output.request_id] = output.outputs[0]
        return [
            _with_drafts(emission.answer(settings["end_ids"]), ended[name].spec_decode_metrics)
            for name, emission in emissions.items()
        ]

    return {"vllm": vllm.__version__}, generate


def _with_drafts(answer: Answer, metrics: Any) -> Answer:
    """With vLLM's record of its verifications, if it drafted."""
    drafted, accepted = (metrics.per_step_drafted, metrics.per_step_accepted) if metrics else ((), ())
    return replace(answer, drafted=by_depth(drafted), accepted=by_depth(accepted))


if __name__ == "__main__":
    serve(load)
