"""llama.cpp (xllamacpp) on the GGUF file: plain, with its n-gram drafters, or with a draft model.

Runs in an environment of its own. The server is asked over HTTP on a loopback port, since only its own completion
endpoint returns token ids; the figures are those of its `timings`.
"""

import json
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

import xllamacpp

from planner.bench.peers.protocol import Answer, Generate, serve, without_end

_SECONDS = 600.0  # the bench gives up earlier


def load(settings: Mapping[str, Any]) -> tuple[Mapping[str, str], Generate]:
    """Start a server on `settings["model"]`; see `planner.bench.peers.arms` for the keys."""
    server = xllamacpp.Server(_parameters(settings))

    def generate(prompt: list[int], max_tokens: int) -> Answer:
        body = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "cache_prompt": False}
        started = time.perf_counter()
        reply = _post(f"{server.listening_address}/completion", {**body, "return_tokens": True})
        seconds = time.perf_counter() - started
        timings = reply["timings"]
        # A step emits what it accepted and one token more.
        steps = timings["predicted_n"] - timings.get("draft_n_accepted", 0)
        tokens = without_end(reply["tokens"], settings["end_ids"])
        return Answer(tokens, seconds, seconds - timings["predicted_ms"] / 1e3, steps)

    return {"xllamacpp": xllamacpp.__version__}, generate


def _parameters(settings: Mapping[str, Any]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    parameters.n_ctx, parameters.n_parallel = settings["max_sequence_length"], 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = settings["threads"]
    speculative, method, length = parameters.speculative, settings["method"], settings["draft_length"]
    types = xllamacpp.common_speculative_type
    speculative.types = [getattr(types, f"COMMON_SPECULATIVE_TYPE_{method.upper()}")]
    for lookup in (speculative.ngram_simple, speculative.ngram_map_k):
        lookup.size_n, lookup.size_m = settings["ngram"], length
    module = speculative.ngram_mod
    module.n_match, module.n_min, module.n_max = settings["ngram"], 1, length
    speculative.draft.n_max = length
    if method == "draft_simple":
        speculative.draft.mparams.path = settings["draft"]
        speculative.draft.cpuparams.n_threads = settings["threads"]
        speculative.draft.cpuparams_batch.n_threads = settings["threads"]
    return parameters


def _post(url: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
        return json.load(reply)


if __name__ == "__main__":
    serve(load)
