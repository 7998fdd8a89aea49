"""A model that speaks the tensors of NVIDIA's C++ backend, and no others: the target continues one text after a colon.

What it sends and when is model_instance_state.cc's doing (TensorRT-LLM 0c8de69a): every response has `output_ids`
[1, beams, tokens] and `sequence_length`; a streamed one has the new tokens alone, a single one the prompt too unless
that is excluded; `batch_index` only for batches, figures only where they were asked for and at the end. The end token
is not part of the output. Draft tokens are verified in the first step, after which the request ends.

Lengths are checked against the engine's config.json as `LlmRequest::validate` does (batch_manager/llmRequest.cpp).
Generation logits are there where the engine was built with gather_generation_logits: [1, beams, tokens, V] in fp32, or
with fast logits one row that says where they are. Draft logits must have a row a token, or be that row.
"""

import json
import pathlib
import threading

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

# model_instance_state.cc reads these outside any try, and model_state.cc throws where one is absent.
READ_WITHOUT_FALLBACK = (
    *("gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"),
)
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, arguments):
        config = json.loads(arguments["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        for name in READ_WITHOUT_FALLBACK:
            if name not in parameters:
                raise RuntimeError(f"Cannot find parameter with name: {name}")
        engine = json.loads(
            pathlib.Path(parameters["gpt_model_path"], "config.json").read_text(encoding="utf-8")
        )
        self.build, self.vocabulary = engine["build_config"], engine["pretrained_config"]["vocab_size"]
        self.chunked = parameters.get("enable_chunked_context") == "true"
        self.fast = parameters.get("speculative_decoding_fast_logits") == "true"
        self.exclude = parameters["exclude_input_in_output"] == "true"
        self.draft = config["name"].endswith("_draft")
        directory = pathlib.Path(__file__).parent
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text = (directory / "output.txt").read_text(encoding="utf-8")
        self.script = tokenizer.encode(text, add_special_tokens=False).ids
        self.colon = tokenizer.encode("a:", add_special_tokens=False).ids[-1]
        self.journal = directory / "journal.jsonl"
        self.stopped = {}

    def execute(self, requests):
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if "stop" in inputs and inputs["stop"].any():
                if self.stopped.get(request.request_id()):
                    self.stopped[request.request_id()].set()
                request.get_response_sender().send(flags=FINAL)
                continue
            stop = self.stopped[request.request_id()] = threading.Event()
            threading.Thread(target=self.serve, args=(request, inputs, stop)).start()

    def serve(self, request, inputs, stop):
        sender = request.get_response_sender()
        rows = len(inputs["input_ids"])
        self.note(
            model="draft" if self.draft else "target",
            inputs={name: value.tolist() for name, value in inputs.items() if value.dtype.kind != "O"},
        )
        for row in range(rows):
            length = int(inputs["input_lengths"].ravel()[row])
            prompt = inputs["input_ids"][row, :length].tolist()
            try:
                drafts, limit = self.validate(inputs, prompt, row)
            except ValueError as error:
                message = f"Executor failed process requestId 1 due to the following error: {error}"
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message)), flags=FINAL)
                return
            self.generate(sender, inputs, prompt, drafts, limit, row, rows, stop)
        sender.send(flags=FINAL)
        self.note(end="stopped" if stop.is_set() else "end")

    def validate(self, inputs, prompt, row):
        """The draft and the most output tokens, both as much shortened as the engine needs."""
        longest, limit = self.build["max_seq_len"], int(inputs["request_output_len"].ravel()[row])
        most_input = longest - 1 if self.chunked else min(longest - 1, self.build["max_num_tokens"])
        if len(prompt) > most_input or limit < 1:
            raise ValueError(f"Prompt length ({len(prompt)}) exceeds maximum input length ({most_input})")
        drafts = inputs.get("draft_input_ids", np.zeros((row + 1, 0), np.int32))[row].tolist()
        if len(drafts) > self.build["max_draft_len"]:
            raise ValueError("Draft tokens length exceeds maximum draft tokens length")
        if "draft_logits" in inputs:
            logits = inputs["draft_logits"][row]
            wanted = (1, 5) if self.fast else (len(drafts), self.vocabulary)
            if logits.shape != wanted or logits.dtype != np.float32:
                raise ValueError(f"draft_logits has {logits.dtype} {logits.shape}, wanted float32 {wanted}")
        if (
            np.ravel(inputs.get("return_generation_logits", False))[0]
            and not self.build["gather_generation_logits"]
        ):
            raise ValueError("return_generation_logits needs an engine with gather_generation_logits")
        step = self.build["max_draft_len"]
        if drafts:
            drafts = drafts[: most_input - len(prompt)]
            step = len(drafts)
        return drafts, max(0, min(limit, longest - len(prompt) - step))

    def generate(self, sender, inputs, prompt, drafts, limit, row, rows, stop):
        streaming = bool(np.ravel(inputs.get("streaming", False))[0])
        exclude = bool(np.ravel(inputs.get("exclude_input_in_output", self.exclude))[0]) or streaming
        words = self.words(inputs, row)
        tokens: list[int] = []
        sent, finished = 0, limit == 0
        if finished:
            sender.send(self.response(inputs, [], row, rows, True, len(prompt), 0))
        step = 0
        while not finished and not stop.is_set():
            # As a fast engine's step. Responses of eight requests that come closer bring about Triton's lock-up of
            # calls from model to model (docs/serve.md, known limits), which is not what is tested.
            stop.wait(0.005)
            new = self.step(prompt + tokens, drafts if step == 0 else [])
            step += 1
            for token in new:
                tokens.append(token)
                finished = finished or (bool(drafts) and len(tokens) == len(new))
                if len(tokens) >= limit or any(tokens[-len(word) :] == word for word in words):
                    finished = True
                    break
            if streaming or finished:
                given = tokens[sent:] if exclude else prompt + tokens
                sender.send(self.response(inputs, given, row, rows, finished, len(prompt), len(tokens)))
                sent = len(tokens)

    def step(self, tokens, drafts):
        """One token, or the accepted drafts and one more; two at a time where nothing is drafted."""
        begun = len(tokens) - 1 - tokens[::-1].index(self.colon) if self.colon in tokens else 0
        place = len(tokens) - begun - 1 if self.colon in tokens else 0
        expected = [
            self.script[(place + index) % len(self.script)] for index in range(max(2, len(drafts) + 1))
        ]
        if self.draft:  # a draft that is wrong now and then
            return [token if (place + index) % 5 else 3 for index, token in enumerate(expected[:1])]
        if not drafts:
            return expected[:2]
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == expected[accepted]:
            accepted += 1
        return expected[: accepted + 1]

    def response(self, inputs, tokens, row, rows, finished, given, made):
        arrays = {
            "output_ids": np.array([[tokens]], np.int32).reshape(1, 1, len(tokens)),
            "sequence_length": np.array([[len(tokens)]], np.int32),
        }
        if np.ravel(inputs.get("return_generation_logits", False))[0] and finished:
            arrays["generation_logits"] = self.logits(tokens[-made:] if made else [])
        if rows > 1:
            arrays["batch_index"] = np.array([[row]], np.int32)
        if np.ravel(inputs.get("return_num_input_tokens", False))[0]:
            arrays["num_input_tokens"] = np.array([[given]], np.int32)
        if np.ravel(inputs.get("return_num_output_tokens", False))[0]:
            arrays["num_output_tokens"] = np.array([[made]], np.int32)
        if np.ravel(inputs.get("return_log_probs", False))[0]:  # of all tokens so far, streamed or not
            arrays["output_log_probs"] = np.full((1, 1, made), -1.0, np.float32)
            arrays["cum_log_probs"] = np.array([[-made]], np.float32)
        if np.ravel(inputs.get("return_perf_metrics", False))[0] and finished:
            arrays["acceptance_rate"] = np.array([[0.5]], np.float32)
            arrays["total_accepted_draft_tokens"] = np.array([[7]], np.int32)
            arrays["total_draft_tokens"] = np.array([[14]], np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in arrays.items()])

    def logits(self, tokens):
        if self.fast:
            return np.arange(5, dtype=np.float32).reshape(1, 1, 1, 5)
        rows = np.zeros((1, 1, len(tokens), self.vocabulary), np.float32)
        rows[0, 0, np.arange(len(tokens)), tokens] = 4.0
        return rows

    def words(self, inputs, row):
        if "stop_words_list" not in inputs:
            return []
        tokens, offsets = inputs["stop_words_list"][min(row, len(inputs["stop_words_list"]) - 1)]
        found, start = [], 0
        for end in offsets[offsets > 0].tolist():
            found.append(tokens[start:end].tolist())
            start = end
        return found

    def note(self, **entry):
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")
