"""Requests as NVIDIA's example clients of TensorRT-LLM's Triton backend make them, with tritonclient alone.

`end_to_end_grpc_client` (text to text, ensemble and BLS) always opens a gRPC stream, sends one request, half-closes
the stream, waits for the server to end it, and only then reads what arrived. `inflight_batcher_llm_client` (tokens
to tokens) does the same with `tensorrt_llm`, and stops a request by a second one that has the same id. Names, types
and shapes are those that these clients send: batch axis first, INT32 for all whole numbers.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.end_to_end.deployment import MAX_SEQUENCE_LENGTH, Deployment

pytestmark = pytest.mark.triton
Tensors = dict[str, NDArray[Any]]

PROMPT = "a token tree holds several guesses; one two three one two three"
MAX_TOKENS = 24
MODELS = ("ensemble", "tensorrt_llm_bls")
METRICS = (
    *("kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"),
    *("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"),
    *("acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens"),
)
TIMES = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")


def always_sent(prompt: str = PROMPT, *, streaming: bool, temperature: float = 0.0) -> Tensors:
    """What the text client sends without being asked for anything."""
    return {
        "text_input": np.array([[prompt]]).astype(object),
        "max_tokens": np.array([[MAX_TOKENS]], np.int32),
        "stream": np.array([[streaming]], bool),
        "beam_width": np.array([[1]], np.int32),
        "temperature": np.array([[temperature]], np.float32),
        "exclude_input_in_output": np.array([[False]], bool),
    }


def all_options(model: str) -> Tensors:
    """Every further tensor that it can send and the embedded engine serves."""
    options: Tensors = {
        "num_return_sequences": np.array([[1]], np.int32),
        "repetition_penalty": np.array([[1.0]], np.float32),
        "presence_penalty": np.array([[0.0]], np.float32),
        "frequency_penalty": np.array([[0.0]], np.float32),
        "stop_words": np.array([["never", "to be seen"]], dtype=object),
        "return_log_probs": np.array([[True]], bool),
        "return_perf_metrics": np.array([[True]], bool),
        "end_id": np.array([[2]], np.int32),
        "pad_id": np.array([[2]], np.int32),
        "num_draft_tokens": np.array([[4]], np.int32),
    }
    if model == "tensorrt_llm_bls":
        options["use_draft_logits"] = np.array([[False]], bool)
    return options


class Exchange:
    """One stream: requests go in, `answers` waits for its end."""

    def __init__(self, deployment: Deployment) -> None:
        self._client = triton.InferenceServerClient(deployment.grpc)
        self.arrived: queue.Queue[Any] = queue.Queue()
        self._client.start_stream(callback=lambda result, error: self.arrived.put(error or result))

    def send(self, model: str, tensors: Tensors, outputs: Sequence[str], request_id: str = "") -> None:
        inputs = [
            triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            for name, value in tensors.items()
        ]
        for tensor, value in zip(inputs, tensors.values(), strict=True):
            tensor.set_data_from_numpy(value)
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        self._client.async_stream_infer(model, inputs, outputs=wanted, request_id=request_id)

    def answers(self) -> list[Any]:
        """All results not yet read; a refusal is raised."""
        self._client.stop_stream()  # returns when the server has ended the stream
        self._client.close()
        found = [self.arrived.get() for _ in range(self.arrived.qsize())]
        for result in found:
            if isinstance(result, InferenceServerException):
                raise result
        return found


def ask(
    deployment: Deployment, model: str, tensors: Tensors, outputs: Sequence[str] = ("text_output",)
) -> list[Any]:
    exchange = Exchange(deployment)
    exchange.send(model, tensors, outputs)
    return exchange.answers()


def text_of(result: Any) -> str:
    """The client takes the first element of a vector."""
    text: str = result.as_numpy("text_output")[0].decode("utf-8")
    return text


def continuation(deployment: Deployment) -> str:
    """The greedy answer alone, without the prompt."""
    tensors = always_sent(streaming=False) | {"exclude_input_in_output": np.array([[True]], bool)}
    (result,) = ask(deployment, "ensemble", tensors)
    return text_of(result)


@pytest.mark.parametrize("model", MODELS)
def test_one_answer_repeats_the_prompt_unless_told_not_to(tiny: Deployment, model: str) -> None:
    (result,) = ask(tiny, model, always_sent(streaming=False))
    assert result.as_numpy("text_output").shape == (1,)
    assert text_of(result) == PROMPT + continuation(tiny)


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_carries_new_text_only(tiny: Deployment, model: str) -> None:
    results = ask(tiny, model, always_sent(streaming=True))
    assert len(results) > 1
    assert "".join(map(text_of, results)) == continuation(tiny)


@pytest.mark.parametrize("model", MODELS)
def test_its_default_temperature_is_served(tiny: Deployment, model: str) -> None:
    (result,) = ask(tiny, model, always_sent(streaming=False, temperature=1.0))
    assert text_of(result).startswith(PROMPT)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_all_its_options_together(tiny: Deployment, model: str, streaming: bool) -> None:
    tensors = always_sent(streaming=streaming) | all_options(model)
    results = ask(tiny, model, tensors, ("text_output", "cum_log_probs", "output_log_probs", *METRICS))
    prompt = "" if streaming else PROMPT
    assert "".join(map(text_of, results)) == prompt + continuation(tiny)
    log_probs = np.concatenate([result.as_numpy("output_log_probs") for result in results], axis=2)
    assert log_probs.shape[:2] == (1, 1)
    assert results[-1].as_numpy("cum_log_probs")[0][0] == pytest.approx(log_probs.sum(), rel=1e-4)
    metrics = {name: results[-1].as_numpy(name)[0][0] for name in METRICS}
    times = [metrics[name] for name in TIMES]
    assert times[0] > 0 and times == sorted(times)
    drafted, accepted = metrics["total_draft_tokens"], metrics["total_accepted_draft_tokens"]
    assert drafted > 0
    assert metrics["acceptance_rate"] == pytest.approx(accepted / drafted)
    assert metrics["kv_cache_alloc_total_blocks"] > 0


@pytest.mark.parametrize("model", MODELS)
def test_batched_prompts_are_told_apart_by_batch_index(tiny: Deployment, model: str) -> None:
    rows = [always_sent(prompt, streaming=True) for prompt in (PROMPT, "squares: 1 4 9 16")]
    tensors = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    texts = ["", ""]
    for result in ask(tiny, model, tensors, ("text_output", "batch_index")):
        texts[result.as_numpy("batch_index")[0][0]] += text_of(result)
    assert texts == ["".join(map(text_of, ask(tiny, model, row))) for row in rows]


@pytest.mark.parametrize("model", MODELS)
def test_every_declared_output_is_sent(tiny: Deployment, model: str) -> None:
    """Logits and sequence index too, of which this engine has none: some clients read all that is declared."""
    config = triton.InferenceServerClient(tiny.grpc).get_model_config(model).config
    declared = {output.name: len(output.dims) for output in config.output}
    (result,) = ask(tiny, model, always_sent(streaming=False), tuple(declared))
    shapes = {output.name: tuple(output.shape) for output in result.get_response().outputs}
    assert shapes.keys() == declared.keys()
    # One axis for the batch before the declared ones; `text_output` goes without, as these clients expect.
    assert {name: len(shape) for name, shape in shapes.items()} == {
        name: rank + (name != "text_output") for name, rank in declared.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_an_option_that_is_not_served_is_refused_by_name(tiny: Deployment, model: str) -> None:
    with pytest.raises(InferenceServerException, match="beam_width is 2"):
        ask(tiny, model, always_sent(streaming=False) | {"beam_width": np.array([[2]], np.int32)})


def token_request(max_tokens: int, *, streaming: bool = True) -> Tensors:
    """What the token client sends."""
    return {
        "input_ids": np.array([[40, 41, 42, 43, 40, 41, 42]], np.int32),
        "input_lengths": np.array([[7]], np.int32),
        "request_output_len": np.array([[max_tokens]], np.int32),
        "beam_width": np.array([[1]], np.int32),
        "temperature": np.array([[0.0]], np.float32),
        "repetition_penalty": np.array([[1.0]], np.float32),
        "streaming": np.array([[streaming]], bool),
        "end_id": np.array([[599]], np.int32),
        "pad_id": np.array([[2]], np.int32),
    }


def stop_request() -> Tensors:
    """How it stops the request that has the same id."""
    return {
        "input_ids": np.empty([1, 1], np.int32),
        "input_lengths": np.zeros([1, 1], np.int32),
        "request_output_len": np.array([[0]], np.int32),
        "stop": np.array([[True]], bool),
    }


def tokens_of(result: Any) -> list[int]:
    length = result.as_numpy("sequence_length")[0][0]
    tokens: list[int] = result.as_numpy("output_ids")[0][0][:length].tolist()
    return tokens


def test_tokens_in_tokens_out(tiny: Deployment) -> None:
    outputs = ("output_ids", "sequence_length")
    streamed = ask(tiny, "tensorrt_llm", token_request(MAX_TOKENS), outputs)
    (whole,) = ask(tiny, "tensorrt_llm", token_request(MAX_TOKENS, streaming=False), outputs)
    assert len(tokens_of(whole)) == MAX_TOKENS
    assert [token for result in streamed for token in tokens_of(result)] == tokens_of(whole)


def test_a_stop_request_ends_the_one_with_the_same_id(tiny: Deployment) -> None:
    exchange, outputs = Exchange(tiny), ("output_ids", "sequence_length")
    exchange.send("tensorrt_llm", token_request(MAX_SEQUENCE_LENGTH - 64), outputs, request_id="41")
    first = exchange.arrived.get(timeout=30)
    exchange.send("tensorrt_llm", stop_request(), outputs, request_id="41")
    assert tokens_of(first)
    with pytest.raises(InferenceServerException, match="the request was stopped"):
        exchange.answers()
