"""What the kit uses of TensorRT-LLM's LLM API, without TensorRT-LLM: the target continues every prompt with one text.

The model's directory holds `tokenizer.json`, `output.txt` (the text, repeated for as long as tokens are asked for) and
maybe `reports_acceptance`, with which speculation figures are as after pull request #17082 and not zero. Drafts of a
user-provided drafter are verified against the text; drafts of a configured method agree with it in a fixed pattern.
Every request's arguments, and its end, are noted in `journal.jsonl`.
"""

import asyncio
import datetime
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer

from tensorrt_llm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]

_ARGUMENTS = {
    *("model", "backend", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "max_batch_size"),
    *("max_input_len", "max_seq_len", "max_num_tokens", "kv_cache_config", "cuda_graph_config"),
    *("return_perf_metrics", "enable_iter_perf_stats", "disable_overlap_scheduler", "speculative_config"),
    "guided_decoding_backend",
}
_ENVIRONMENT = ("PYTHONPATH", "PMIX_", "OMPI_")


class LLM:
    def __init__(self, **arguments):
        unknown = set(arguments) - _ARGUMENTS
        if unknown:
            raise TypeError(f"unexpected arguments: {unknown}")
        self.directory = Path(arguments["model"])
        self.tokenizer = Tokenizer.from_file(str(self.directory / "tokenizer.json"))
        text = (self.directory / "output.txt").read_text(encoding="utf-8")
        self.output = self.tokenizer.encode(text, add_special_tokens=False).ids
        self.speculation = arguments.get("speculative_config")
        self.max_seq_len = arguments["max_seq_len"]
        self.reports = (self.directory / "reports_acceptance").exists()
        self.ids = itertools.count(1)
        drafter = getattr(self.speculation, "drafter", None)
        self.note(
            loaded={
                "max_concurrency": getattr(self.speculation, "max_concurrency", None),
                "drafter": getattr(drafter, "max_concurrency", None),
                "environment": {
                    name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)
                },
            }
        )

    def generate_async(self, inputs, sampling_params=None, streaming=False, cache_salt=None):
        if "too much" in inputs:
            raise ValueError("the prompt is more than the engine takes")
        self.note(prompt=inputs, sampling=vars(sampling_params), streaming=streaming, cache_salt=cache_salt)
        return GenerationResult(self, inputs, sampling_params, streaming, next(self.ids))

    def note(self, **entry):
        with (self.directory / "journal.jsonl").open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry, default=vars) + "\n")

    def shutdown(self):
        self.note(shutdown=True)


class GenerationResult:
    """The promise and at the same time each of its results, as in TensorRT-LLM."""

    def __init__(self, llm, prompt, sampling, streaming, request_id):
        self._llm, self._sampling, self._streaming = llm, sampling, streaming
        self._aborted = False
        self._drafted = self._accepted = self._steps = 0
        self.request_id = request_id
        self.prompt_token_ids = llm.tokenizer.encode(
            prompt, add_special_tokens=sampling.add_special_tokens
        ).ids
        self.finished = False
        self.outputs = [
            SimpleNamespace(
                text="", token_ids=[], finish_reason=None, stop_reason=None, cumulative_logprob=None, logprobs=None,
                request_perf_metrics=None,
            )
        ]  # fmt: skip
        self.avg_decoded_tokens_per_iter = None

    def abort(self):
        self._aborted = True

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.finished:
            raise StopAsyncIteration
        while True:
            await asyncio.sleep(0.002)
            self._step()
            if self.finished or self._streaming:
                return self

    def _step(self):
        output, sampling = self.outputs[0], self._sampling
        if "fail" in self._llm.tokenizer.decode(self.prompt_token_ids) and len(output.token_ids) > 4:
            raise RuntimeError("the executor died")
        if self._aborted:
            self._end("cancelled")
            return
        limit = min(sampling.max_tokens, self._llm.max_seq_len - len(self.prompt_token_ids))
        script = itertools.cycle(self._llm.output)
        wanted = list(itertools.islice(script, len(output.token_ids), limit))
        draft = self._draft(wanted) if self._steps else []
        pairs = zip(draft, wanted, strict=False)
        matching = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._drafted += len(draft)
        self._accepted += matching
        self._steps += 1
        output.token_ids = output.token_ids + wanted[: matching + 1]
        for stop in sampling.stop or ():
            ids = self._llm.tokenizer.encode(stop, add_special_tokens=False).ids
            for end in range(len(ids), len(output.token_ids) + 1):
                if output.token_ids[end - len(ids) : end] == ids:
                    output.token_ids = output.token_ids[: end - len(ids)]
                    output.stop_reason = stop
                    self._end("stop")
                    return
        self._detokenize()
        if len(output.token_ids) >= limit:
            self._end("length")

    def _draft(self, wanted):
        speculation = self._llm.speculation
        if speculation is None:
            return []
        if isinstance(speculation, dict):  # every other draft is wrong in its last token
            draft = wanted[: speculation["max_draft_len"]]
            return draft if self._steps % 2 else [*draft[:-1], -1]
        tokens = [*self.prompt_token_ids, *self.outputs[0].token_ids]
        request = SimpleNamespace(
            request_id=self.request_id, py_batch_idx=None, py_draft_tokens=None, get_tokens=lambda beam: tokens,
            py_orig_prompt_len=len(self.prompt_token_ids), py_max_new_tokens=self._sampling.max_tokens,
        )  # fmt: skip
        batch = SimpleNamespace(generation_requests=[request])
        speculation.drafter.prepare_draft_tokens(batch, None)
        return request.py_draft_tokens

    def _end(self, reason):
        output, speculation = self.outputs[0], self._llm.speculation
        self.finished, output.finish_reason = True, reason
        self._detokenize()
        if self._steps:
            self.avg_decoded_tokens_per_iter = len(output.token_ids) / self._steps
        if self._sampling.return_perf_metrics:
            output.request_perf_metrics = self._metrics()
        if speculation is not None and not isinstance(speculation, dict):
            speculation.resource_manager.free_resources(SimpleNamespace(request_id=self.request_id))
        self._llm.note(
            end=reason, tokens=len(output.token_ids), steps=self._steps, drafted=self._drafted,
            accepted=self._accepted,
        )  # fmt: skip

    def _metrics(self):
        drafted, accepted = (self._drafted, self._accepted) if self._llm.reports else (0, 0)
        moment = datetime.timedelta(seconds=100, microseconds=self._steps)
        return SimpleNamespace(
            kv_cache_metrics=SimpleNamespace(
                num_reused_blocks=1, num_missed_blocks=2, num_new_allocated_blocks=3, num_total_allocated_blocks=4,
                kv_cache_hit_rate=0.25,
            ),
            timing_metrics=SimpleNamespace(
                arrival_time=moment, first_scheduled_time=moment, first_token_time=moment, last_token_time=moment
            ),
            speculative_decoding=SimpleNamespace(
                acceptance_rate=accepted / drafted if drafted else 0.0, total_accepted_draft_tokens=accepted,
                total_draft_tokens=drafted,
            ),
        )  # fmt: skip

    def _detokenize(self):
        if self._sampling.logprobs is not None:
            entry = SimpleNamespace(logprob=-0.5)
            self.outputs[0].logprobs = [{token: entry, -1: None} for token in self.outputs[0].token_ids]
        text = self._llm.tokenizer.decode(self.outputs[0].token_ids)
        self.outputs[0].text = text if self.finished else text.rstrip("\N{REPLACEMENT CHARACTER}")
