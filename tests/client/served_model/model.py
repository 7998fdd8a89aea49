"""A Triton Python model with the contract's tensors and no language model in it.

It says the words of its prompt again, two words (= tokens) a response, and takes orders from the first word:

    endless ...      says them round and round, slowly, until `max_tokens` or cancellation
    silent ...       says nothing until it is cancelled
    inputs           says its own inputs, as JSON
    nothing          ends at once, without a word
    fail CODE ...    fails with Triton's error CODE and the rest as message
    breaks ...       says two words, then fails
    raises ...       raises a Python exception

How each request goes is noted in the journal, a file: `began ID`, then `finished ID` or `cancelled ID`.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

WORDS_PER_RESPONSE = 2
END_WORD = "<end>"


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.outputs = {output["name"]: output["data_type"] for output in config["output"]}
        self.input_names = [entry["name"] for entry in config["input"]]
        self.batched = config["max_batch_size"] > 0
        self.journal = Path(config["parameters"]["journal"]["string_value"])
        self.lock = threading.Lock()
        self.running = []

    def execute(self, requests):
        for request in requests:
            inputs = self.read_inputs(request)
            if prompt_of(inputs).startswith("raises"):
                raise ValueError("the model raised this")
            thread = threading.Thread(
                target=self.run, args=(request.request_id(), inputs, request.get_response_sender())
            )
            thread.start()
            self.running = [other for other in self.running if other.is_alive()] + [thread]

    def finalize(self):
        for thread in self.running:
            thread.join(timeout=5)

    def read_inputs(self, request):
        found = {}
        for name in self.input_names:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                values = tensor.as_numpy().ravel().tolist()
                found[name] = [v.decode() if isinstance(v, bytes) else v for v in values]
        return found

    def run(self, request_id, inputs, sender):
        self.note("began", request_id)
        try:
            how = self.speak(inputs, sender)
        except pb_utils.TritonModelException as error:
            how = f"lost:{error}".replace(" ", "-")
        self.note(how, request_id)

    def note(self, what, request_id):
        with self.lock, self.journal.open("a") as journal:
            journal.write(f"{what} {request_id}\n")

    def speak(self, inputs, sender):
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        prompt = prompt_of(inputs)
        order, _, rest = prompt.partition(" ")
        if order == "fail":
            code, _, message = rest.partition(" ")
            sender.send(self.error(message, code), flags=final)
            return "failed"
        if order == "silent":
            wait_until(sender.is_cancelled)
            sender.send(flags=final)
            return "cancelled"
        said = []
        for words in self.words(inputs, prompt, order):
            if sender.is_cancelled():
                sender.send(flags=final)
                return "cancelled"
            said += words
            if words:
                sender.send(self.response(words, said, inputs))
            if order == "breaks":
                sender.send(self.error("the model broke down", "INTERNAL"), flags=final)
                return "failed"
        sender.send(flags=final)
        return "finished"

    def words(self, inputs, prompt, order):
        """The words to say, a response at a time."""
        if order == "inputs":
            yield [json.dumps(inputs)]
            return
        limit = first(inputs, "max_tokens", "request_output_len")
        stops = inputs.get("stop_words", [])
        source = prompt.split()
        said = 0
        while said < limit and order != "nothing":
            left = limit - said if order == "endless" else min(limit, len(source)) - said
            group = [source[(said + i) % len(source)] for i in range(min(WORDS_PER_RESPONSE, left))]
            ends = [i for i, word in enumerate(group) if word == END_WORD]
            stopped = [i for i, word in enumerate(group) if word in stops]
            cut = min(ends + stopped, default=len(group))
            said += cut
            yield group[:cut]
            if ends or stopped or (said >= len(source) and order != "endless"):
                return
            if order == "endless":
                time.sleep(0.01)

    def response(self, words, said, inputs):
        text = "".join(f"{word} " for word in words)
        values = {"text_output": [text.encode()], "output_ids": [[len(word) for word in words]]}
        values["sequence_length"] = [len(words)]
        if first(inputs, "return_log_probs"):
            values["output_log_probs"] = [[-len(word) / 8 for word in words]]
        if first(inputs, "return_num_input_tokens"):
            values["num_input_tokens"] = [len(prompt_of(inputs).split())]
        if first(inputs, "return_num_output_tokens"):
            values["num_output_tokens"] = [len(said)]
        if first(inputs, "return_perf_metrics"):
            values |= {"total_draft_tokens": [len(said)], "total_accepted_draft_tokens": [len(said) // 2]}
            values |= {"acceptance_rate": [0.5], "arrival_time_ns": [1_000]}
            values |= {"first_scheduled_time_ns": [2_000], "first_token_time_ns": [3_000]}
            values |= {"last_token_time_ns": [2**40 + 1]}
            values |= {"kv_cache_reused_blocks": [3], "kv_cache_alloc_total_blocks": [5]}
        tensors = [self.tensor(name, value) for name, value in values.items() if name in self.outputs]
        return pb_utils.InferenceResponse(tensors)

    def tensor(self, name, value):
        dtype = pb_utils.triton_string_to_numpy(self.outputs[name])
        return pb_utils.Tensor(name, np.array([value] if self.batched else value, dtype=dtype))

    def error(self, message, code):
        error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
        return pb_utils.InferenceResponse(error=error)


def prompt_of(inputs):
    if "text_input" in inputs:
        return inputs["text_input"][0]
    return " ".join("x" * token for token in inputs["input_ids"])


def first(inputs, *names):
    return next((inputs[name][0] for name in names if name in inputs), False)


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
