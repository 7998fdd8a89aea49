"""A Triton Python model with the contract's tensors and counters, and a clock for a language model.

A step takes 2 ms. It yields one token, or with speculation three tokens (two of seven drafts accepted) and
one (none accepted) in turn, until `max_tokens`. A prompt that begins with "fail" is refused.

Reading a prompt takes 40 ms, unless a request of the same `cache_salt` has brought it before: a prefix cache. With the
parameter `keeps: false` nothing is kept.
"""

import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

STEP_S = 0.002
READING_S = 0.04
DRAFT_LENGTH = 7


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.outputs = {output["name"]: output["data_type"] for output in config["output"]}
        self.keeps = config["parameters"].get("keeps", {}).get("string_value") != "false"
        self.kept = set()
        self.lock = threading.Lock()
        self.threads = []
        self.families = [
            pb_utils.MetricFamily(name=f"trtllm_spec_decode_{what}_tokens_total", description=what, kind=kind)
            for what, kind in (
                ("drafted", pb_utils.MetricFamily.COUNTER),
                ("accepted", pb_utils.MetricFamily.COUNTER),
            )
        ]
        self.drafted, self.accepted = (
            [family.Metric(labels={"token_position": str(i + 1)}) for i in range(DRAFT_LENGTH)]
            for family in self.families
        )
        gauges = pb_utils.MetricFamily(
            name="nv_trt_llm_request_metrics", description="requests", kind=pb_utils.MetricFamily.GAUGE
        )
        self.families.append(gauges)
        self.active = gauges.Metric(labels={"request_type": "active", "model": "words", "version": "1"})

    def execute(self, requests):
        for request in requests:
            asked = {tensor.name(): tensor.as_numpy().ravel()[0] for tensor in request.inputs()}
            thread = threading.Thread(target=self.run, args=(asked, request.get_response_sender()))
            self.threads.append(thread)
            thread.start()

    def finalize(self):
        for thread in self.threads:
            thread.join(timeout=5)

    def run(self, asked, sender):
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if asked["text_input"].startswith(b"fail"):
            error = pb_utils.TritonError("this prompt fails", pb_utils.TritonError.INTERNAL)
            sender.send(pb_utils.InferenceResponse(error=error), flags=final)
            return
        self.count(self.active, 1)
        try:
            self.generate(asked, sender)
        finally:
            self.count(self.active, -1)
        sender.send(flags=final)

    def generate(self, asked, sender):
        limit, speculates = int(asked["max_tokens"]), asked.get("num_draft_tokens", 1) != 0
        arrival, total, drafted, accepted = time.monotonic_ns(), 0, 0, 0
        prompt = asked.get("cache_salt", b""), asked["text_input"]
        found = prompt in self.kept
        time.sleep(0 if found else READING_S)
        if self.keeps:
            self.kept.add(prompt)
        while total < limit and not sender.is_cancelled():
            time.sleep(STEP_S)
            kept = min(2 if speculates and total % 4 == 1 else 0, limit - total - 1)
            if speculates and total:
                self.count_step(kept)
                drafted += DRAFT_LENGTH
            accepted += kept
            total += kept + 1
            values = {"text_output": [b"w " * (kept + 1)], "output_ids": [[7] * (kept + 1)]}
            values |= {"num_input_tokens": [5], "num_output_tokens": [total]}
            values |= {"total_draft_tokens": [drafted], "total_accepted_draft_tokens": [accepted]}
            values |= {"arrival_time_ns": [arrival], "first_scheduled_time_ns": [arrival + 1_000_000]}
            values |= {"kv_cache_reused_blocks": [4 if found else 0], "kv_cache_alloc_total_blocks": [5]}
            sender.send(pb_utils.InferenceResponse([self.tensor(*item) for item in values.items()]))

    def count_step(self, kept):
        for position in range(DRAFT_LENGTH):
            self.count(self.drafted[position], 1)
            if position < kept:
                self.count(self.accepted[position], 1)

    def count(self, metric, by):
        with self.lock:
            metric.increment(by)

    def tensor(self, name, value):
        return pb_utils.Tensor(
            name, np.array([value], dtype=pb_utils.triton_string_to_numpy(self.outputs[name]))
        )
