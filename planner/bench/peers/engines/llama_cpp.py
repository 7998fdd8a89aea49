"""llama.cpp (xllamacpp) on the GGUF file: plain, with its n-gram drafters, or with a draft model.

Runs in an environment of its own. The server is asked over HTTP on a loopback port, since only its own completion
endpoint returns token ids. Answers are streamed, so that the time of each token is known; of a token that does not end
a character the stream gives no id, and -1 stands for it.
"""

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp

from planner.bench.peers.protocol import Answer, Emission, Generate, serve

_MISSING = -1


def load(settings: Mapping[str, Any]) -> tuple[Mapping[str, str], Generate]:
    """Start a server on `settings["model"]`; see `planner.bench.peers.arms` for the keys."""
    server = xllamacpp.Server(_parameters(settings))

    def generate(prompts: list[list[int]], max_tokens: int, _seed: int) -> list[Answer]:
        url = f"{server.listening_address}/completion"  # the server lives as long as this function
        started = time.perf_counter()

        def answer(prompt: list[int]) -> Answer:
            return _answer(url, prompt, max_tokens, Emission(started), settings["end_ids"])

        with ThreadPoolExecutor(len(prompts)) as threads:
            return list(threads.map(answer, prompts))

    return {"xllamacpp": xllamacpp.__version__}, generate


def _parameters(settings: Mapping[str, Any]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    parameters.n_ctx = settings["batch"] * settings["max_sequence_length"]  # divided among the requests
    parameters.n_parallel = settings["batch"]
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


def _answer(
    url: str, prompt: list[int], max_tokens: int, emission: Emission, end_ids: Sequence[int]
) -> Answer:
    """Ask for one answer, and read it as it comes."""
    body = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "cache_prompt": False}
    content = json.dumps({**body, "return_tokens": True, "stream": True}).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:  # the bench gives up if it takes too long
        for line in reply:
            if not line.startswith(b"data: "):
                continue
            part = json.loads(line.removeprefix(b"data: "))
            if part["stop"]:
                emission.add([])
                break
            missing = part["tokens_predicted"] - len(emission.tokens) - len(part["tokens"])
            emission.add([_MISSING] * missing + part["tokens"])
    timings = part["timings"]
    # A step emits what it accepted and one token more.
    return emission.answer(end_ids, steps=timings["predicted_n"] - timings.get("draft_n_accepted", 0))


if __name__ == "__main__":
    serve(load)
