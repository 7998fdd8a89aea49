"""The `tensorrt_llm_bls` model: text in, text out, with speculation in front of `tensorrt_llm`.

It works in front of the embedded engine and of NVIDIA's `backend: "tensorrtllm"` alike, and imports nothing that
NVIDIA's container does not have. What it does is said by the parameters of its config.pbtxt (`BlsSettings`):

 * no drafter: every row is one call of `tensorrt_llm`, whose answers are passed on;
 * `tensorrt_llm_draft_model_name`: another Triton model drafts;
 * `drafter`: a speculator that needs nothing but tokens drafts, in this process.

A request says by `num_draft_tokens` how much to draft at most; 0 switches drafting off. By `use_draft_logits` it says
whether to accept by distribution what a model has drafted, where the engines were built for that. The rows of a batch
are generated side by side, each in a thread of its own, and every verified step is a response if the request streams.
Text becomes tokens and tokens become text in this process, by the code of `preprocessing` and `postprocessing`.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engine.deadlines import Deadline, check_one_shot
from engine.errors import RequestError
from engine.gate import Gate
from engine.outputs import RequestMetrics
from engine.serving.backend import finish_calls, input_names, parameters, refuse, tensors
from engine.serving.bls_metrics import SpeculationCounts
from engine.serving.bls_settings import BlsSettings
from engine.serving.bounded_text import BoundedCodec
from engine.serving.calls import Caller, Tensors
from engine.serving.contract import Answer, GenerationCall, read_sampling, refuse_unsupported
from engine.serving.decoding_modes import decoding_mode
from engine.serving.distribution import for_the_backend
from engine.serving.drafting import Drafter, ModelDrafter, NgramDrafter
from engine.serving.engine_limits import EngineLimits
from engine.serving.engine_rules import EngineRules
from engine.serving.exchange import Exchange
from engine.serving.life import Life, refuse_when_stopping
from engine.serving.request_names import refuse_unknown
from engine.serving.salts import parted
from engine.serving.speculation import speculate
from engine.serving.stopped import StoppedAnswers, streamed
from engine.serving.target import Row, Target, read_tokens
from engine.serving.text import decode_words
from engine.serving.tokenization import postprocess, preprocess
from engine.serving.wiring import (
    GENERATION_OUTPUTS,
    GENERATION_TO_POSTPROCESSING,
    OPTIONAL_TO_GENERATION,
    PREPROCESSING_TO_GENERATION,
    TO_GENERATION,
    TO_PREPROCESSING,
    TOKENS_OF_STOP_WORDS,
)
from engine.stopping import StopWords
from speculators.draft_length import DraftLength

# What a sequence of calls cannot do: beams, and whatever keeps count of the output or keeps a state of its own.
_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "beam_width": (0, 1),
    "num_return_sequences": (0, 1),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "return_context_logits": (0,),
    "return_generation_logits": (0,),
}
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_REFUSED = (
    "guided_decoding_guide_type",
    "guided_decoding_guide",
    "prompt_embedding_table",
)
# The kit's additions to the inputs of `tensorrt_llm`, and NVIDIA's names for them.
_NVIDIA_NAMES: Mapping[str, str] = {
    "min_length": "min_tokens",
    "random_seed": "seed",
    "num_draft_tokens": "",
    "stop_words": "",
}


@dataclass(frozen=True, slots=True)
class _Task:
    """One row to be served: its inputs for `tensorrt_llm`, and how much to draft for it (0: nothing), how accepted.

    `stop_words` are looked for here, where what is behind looks for tokens alone.
    """

    row: int
    inputs: Mapping[str, NDArray[Any]]
    call: GenerationCall | None
    draft_length: int
    by_logits: bool
    stop_words: StopWords | None


class BlsModel:
    """Serves text requests row by row."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Read the parameters, load the tokenizer, make the drafter.

        Raises:
            ValueError: a parameter is missing or impossible.
        """
        self._inputs = input_names(arguments)
        settings = BlsSettings.read(parameters(arguments))
        limits = EngineLimits() if settings.embedded else EngineLimits.read(Path(settings.gpt_model_path))
        self._settings = settings = settings.within(limits)
        longest = limits.max_sequence_length or settings.max_sequence_length
        self._codec = BoundedCodec(
            Path(settings.tokenizer_dir),
            most_tokens=longest,
            skip_special_tokens=settings.skip_special_tokens,
        )
        self._rules = (
            None
            if settings.embedded
            else EngineRules.read(Path(settings.tokenizer_dir), Path(settings.gpt_model_path))
        )
        self._caller = Caller(embedded=settings.embedded)
        self._mode = decoding_mode(settings.decoding_mode, redrafter_samples=limits.redrafter_samples)
        self._target = Target(
            settings.target,
            self._caller,
            continues=settings.embedded,
            max_sequence_length=0 if settings.embedded else longest,
        )
        self._drafter = self._make_drafter()
        self._counts = SpeculationCounts(settings, arguments)
        self._exchanges: dict[int, Exchange] = {}
        self._pool = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="bls")
        self._life = Life(arguments)

    def execute(self, requests: list[Any]) -> None:
        """Start the requests; their responses follow from the pool's threads."""
        for request in requests:
            try:
                self._start(request, tensors(request))
            except Exception as error:  # one request's fault is not to become that of its neighbours
                refuse(request.get_response_sender(), error)

    def _start(self, request: Any, given: Tensors) -> None:
        if "stop" in given and given["stop"].any():
            if "generation_handle" not in given:
                raise RequestError(
                    "stop is set but generation_handle is missing; give that of the request to stop"
                )
            if meant := self._exchanges.get(int(np.ravel(given["generation_handle"])[0])):
                meant.stop()
            request.get_response_sender().send(flags=_FINAL)
            return
        refuse_when_stopping()
        refuse_unknown(request.parameters(), self._inputs)
        tasks = self._tasks(given)
        exchange = Exchange(request, len(tasks))
        self._exchanges[exchange.handle] = exchange
        for task in tasks:
            self._pool.submit(self._serve, exchange, task)

    def finalize(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown()
        self._caller.close()
        self._counts.close()
        finish_calls()
        self._life.end()

    def _make_drafter(self) -> Drafter | None:
        settings = self._settings
        if settings.draft_model:
            return ModelDrafter(
                settings.draft_model,
                self._caller,
                continues=settings.embedded,
                fast_logits=settings.fast_logits,
            )
        return NgramDrafter(settings.drafter, settings.drafter_settings) if settings.drafter else None

    def _tasks(self, given: Tensors) -> list[_Task]:
        """The rows of a request.

        Raises:
            RequestError: it cannot be served.
        """
        asked = given.get("use_draft_logits")
        by_logits = self._settings.draft_logits(None if asked is None else bool(np.any(asked)))
        prepared = preprocess(self._codec, _renamed(given, TO_PREPROCESSING), self._rules)
        names = {**PREPROCESSING_TO_GENERATION, **OPTIONAL_TO_GENERATION}
        names |= {} if self._settings.embedded else TOKENS_OF_STOP_WORDS
        inputs = _renamed(given, TO_GENERATION) | _renamed(prepared, names)
        if self._settings.part_cache:  # by here, for all calls of a row alike
            inputs = parted(inputs, len(inputs["input_lengths"]))
        lengths = self._draft_lengths(inputs)
        call = None
        if any(lengths):
            refuse_unsupported(inputs, "tensorrt_llm_bls with drafts", _NEUTRAL, _REFUSED)
            call = GenerationCall(inputs, frozenset(), self._settings.exclude_input_in_output, self._codec)
            for request in call.requests:
                if not call.streaming:
                    check_one_shot(request.max_tokens, self._settings.max_one_shot_tokens)
                self._settings.check_length(len(request.prompt), request.max_tokens)
        return [
            # Rows that are drafted for find their stop words in `call`.
            _Task(
                row,
                self._of_row(inputs, row),
                call,
                length,
                by_logits,
                None if call and length else self._stop_words(inputs, row),
            )
            for row, length in enumerate(lengths)
        ]

    def _stop_words(self, inputs: Tensors, row: int) -> StopWords | None:
        """What to look for in front of engines that do not; of several beams nobody could say which one has ended."""
        several = (inputs.get(name, np.ones(1)) for name in ("beam_width", "num_return_sequences"))
        if self._settings.embedded or max(np.max(value) for value in several) > 1:
            return None
        words = decode_words(inputs.get("stop_words"), row, "stop_words")
        return StopWords(words, self._codec) if words else None

    def _draft_lengths(self, inputs: Tensors) -> list[int]:
        """How much to draft for each row: what it asks for, or the deployment's own; the deployment's at most."""
        rows, most = len(inputs["input_lengths"]), self._settings.num_draft_tokens
        asked = (
            np.ravel(inputs["num_draft_tokens"]).tolist() if "num_draft_tokens" in inputs else [most] * rows
        )
        if min(asked) < 0:
            raise RequestError(f"num_draft_tokens is {min(asked)}; it must be 0 (speculation off) or more")
        if self._drafter is None:
            if max(asked) and not self._settings.embedded:
                raise RequestError(
                    f"num_draft_tokens is {max(asked)}, but nothing drafts here: tensorrt_llm_bls has neither "
                    "tensorrt_llm_draft_model_name nor drafter among its parameters"
                )
            return [0] * rows
        return [min(length, most) for length in asked]

    def _of_row(self, inputs: Tensors, row: int) -> dict[str, NDArray[Any]]:
        """The row's inputs for `tensorrt_llm`, by the names that it knows."""
        found = {name: value[row : row + 1] for name, value in inputs.items()}
        found["input_ids"] = found["input_ids"][:, : int(found["input_lengths"].ravel()[0])]
        if self._settings.embedded:
            return found
        renamed = {_NVIDIA_NAMES.get(name, name): value for name, value in found.items()}
        known = {name: value for name, value in renamed.items() if name}
        sampling = read_sampling(known)
        if self._mode:
            self._mode.check(sampling, known)
        return for_the_backend(sampling, known)

    def _serve(self, exchange: Exchange, task: _Task) -> None:
        failure: Exception | None = None
        try:
            if task.draft_length and task.call:
                self._draft_and_verify(exchange, task, task.call)
            else:
                self._pass_on(exchange, task)
        except Exception as error:  # a model's refusal, or a fault of ours: nobody else would tell the client
            failure = error
        if exchange.close_row(failure):
            del self._exchanges[exchange.handle]

    def _draft_and_verify(self, exchange: Exchange, task: _Task, call: GenerationCall) -> None:
        request = call.requests[task.row]
        assert self._drafter is not None
        metrics = RequestMetrics(len(request.prompt), arrival_ns=exchange.arrival_ns)
        row = Row(request, task.inputs, metrics, Gate.of(request))
        answer = Answer(call, task.row)
        drafting = self._drafter.start(request, task.inputs, exchange.gone, by_logits=task.by_logits)
        with closing(drafting), self._counts.row() as count:
            length = DraftLength(task.draft_length, adaptive=self._settings.adaptive)
            deadline = Deadline(exchange.arrived, self._settings.max_request_seconds)
            for output in speculate(row, self._target, drafting, length, exchange.gone, count):
                deadline.check()
                outputs = answer.add(output)
                if outputs is not None:
                    exchange.send(outputs | {"text_output": self._text_of(outputs)})

    def _pass_on(self, exchange: Exchange, task: _Task) -> None:
        """One call for the whole row; its answers as they come, with their text."""
        own = ["is_final", "text_cut"] if self._settings.embedded else []
        names = ["output_ids", "sequence_length", *own]
        wanted = dict.fromkeys([*names, *(name for name in GENERATION_OUTPUTS if name in exchange.wanted)])
        final = not np.any(task.inputs.get("streaming", False))
        given: list[int] = []
        outputs: dict[str, NDArray[Any]] = {}
        if task.stop_words:
            self._stop_at_words(exchange, task, list(wanted), task.stop_words)
            return
        for answer in self._caller.call(self._settings.target, task.inputs, wanted, exchange.gone):
            outputs = {**answer, "batch_index": np.array([[task.row]], np.int32)}
            if "is_final" in answer:
                final = bool(answer["is_final"].ravel()[0])
            self._send_tokens(exchange, outputs, given, final=final)
        if outputs and not final:  # NVIDIA's backend does not say which response is the last
            nothing = {
                "output_ids": np.zeros((1, 1, 0), np.int32),
                "sequence_length": np.zeros((1, 1), np.int32),
            }
            self._send_tokens(exchange, outputs | nothing, given, final=True)

    def _stop_at_words(self, exchange: Exchange, task: _Task, wanted: list[str], words: StopWords) -> None:
        """As `_pass_on`, in front of engines that look for tokens where stop words are text."""
        excluded = task.inputs.get("exclude_input_in_output", self._settings.exclude_input_in_output)
        streaming = bool(np.any(task.inputs.get("streaming", False)))
        prefix = [] if streaming or np.any(excluded) else task.inputs["input_ids"].ravel().tolist()
        stopped = StoppedAnswers(words.watch(), streaming=streaming, prefix=prefix)
        row = {"batch_index": np.array([[task.row]], np.int32)}
        given: list[int] = []
        # The sum is made again from the tokens that are kept; what the client does not want, the exchange leaves out.
        summed = ["output_log_probs"] if "cum_log_probs" in wanted else []
        answers = self._caller.call(
            self._settings.target,
            streamed(task.inputs),
            dict.fromkeys([*wanted, *summed]),
            exchange.gone,
            stopped.enough,
        )
        for answer in answers:
            if outputs := stopped.add(answer):
                self._send_tokens(exchange, outputs | row, given, final=False)
        if not exchange.gone():
            self._send_tokens(exchange, stopped.last() | row, given, final=True)

    def _send_tokens(
        self, exchange: Exchange, outputs: dict[str, NDArray[Any]], given: list[int], *, final: bool
    ) -> None:
        """Pass an answer on, with the text that it adds to the tokens `given` before it, which grow by its own."""
        outputs |= {
            "previous_output_ids": np.array([given], np.int32),
            "is_final": np.array([[final]]),
            "text_cut": outputs.get("text_cut", np.zeros((1, 1), np.int32)),
        }
        given += read_tokens(outputs)
        exchange.send(outputs | {"text_output": self._text_of(outputs)})

    def _text_of(self, outputs: Tensors) -> NDArray[np.object_]:
        return postprocess(self._codec, _renamed(outputs, GENERATION_TO_POSTPROCESSING))


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Inputs of the next model. Scalars reach a model without their last axis, which callers have to give."""
    found = {inner: tensors[public] for public, inner in names.items() if public in tensors}
    return {name: value[:, None] if value.ndim == 1 else value for name, value in found.items()}
