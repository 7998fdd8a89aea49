"""Stop words through both text doors of the embedded engine: text, whatever the tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from client import DrafthouseClient
from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_generate,
    text_inputs,
    token_inputs,
    whole_text,
    whole_tokens,
)
from tests.end_to_end.deployment import Deployment, wait_until
from tests.end_to_end.reference import Reference

pytestmark = pytest.mark.triton

of_each_door = pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
streamed_or_not = pytest.mark.parametrize("stream", [False, True])
PROMPT = "the target verifies what"
LENGTH = 64


def words_in(text: str) -> Iterator[str]:
    """Words of one to six characters that begin anywhere, each at its first place."""
    for begin in range(0, len(text) - 6, 11):
        word = text[begin : begin + 1 + begin % 6]
        if text.index(word) == begin:
            yield word


@of_each_door
@streamed_or_not
@pytest.mark.parametrize("drafted", [0, 7])
def test_the_text_before_the_word_is_the_answer(
    grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool, drafted: int
) -> None:
    outcome = reference.outcome(PROMPT, LENGTH, return_log_probs=True)
    whole = reference.codec.decode(outcome.tokens)
    for word in words_in(whole):
        options: dict[str, Any] = {"stream": stream, "num_draft_tokens": drafted, "return_log_probs": True}
        inputs = text_inputs(PROMPT, max_tokens=LENGTH, stop_words=["absent", word], **options)
        answers = grpc_caller.infer(model, inputs)
        expected = whole[: whole.index(word)]
        assert whole_text(answers) == expected
        kept = whole_tokens(answers)
        assert kept == outcome.tokens[: len(kept)]
        assert reference.codec.decode(kept).startswith(expected)
        assert answers[-1]["num_output_tokens"].item() == len(kept)
        if kept:
            given = np.concatenate([answer["output_log_probs"].ravel() for answer in answers])
            np.testing.assert_array_equal(
                given[: len(kept)], np.array(outcome.log_probs[: len(kept)], np.float32)
            )
        for text in accumulate(answer["text_output"].ravel()[0].decode() for answer in answers):
            assert expected.startswith(text)


@of_each_door
def test_rows_of_a_batch_have_words_of_their_own(
    grpc_caller: GrpcCaller, reference: Reference, model: str
) -> None:
    prompts = (PROMPT, "one two three", "Привет, мир.")
    texts = [reference.text(prompt, LENGTH) for prompt in prompts]
    words = [text[9 : 12 + row] for row, text in enumerate(texts)]
    inputs = text_inputs(*prompts, max_tokens=LENGTH, stream=True)
    inputs["stop_words"] = np.array([[word.encode(), b""] for word in words], object)
    answers = grpc_caller.infer(model, inputs)
    for row, (text, word) in enumerate(zip(texts, words, strict=True)):
        assert whole_text(answers, row) == text[: text.index(word)]


@of_each_door
def test_the_engine_ends_with_the_answer(
    served: Deployment, grpc_caller: GrpcCaller, reference: Reference, model: str
) -> None:
    """Otherwise it would decode thousands of tokens more, and its slot would not be free soon."""
    word = reference.text(PROMPT, LENGTH)[30:34]
    before = served.metrics()["drafthouse_spec_tokens_total/engine"]
    grpc_caller.infer(model, text_inputs(PROMPT, max_tokens=6000, stop_words=[word]))
    wait_until(served.is_idle, "the engine is idle")
    assert served.metrics()["drafthouse_spec_tokens_total/engine"] - before < LENGTH


@of_each_door
def test_over_http_and_by_the_client(served: Deployment, reference: Reference, model: str) -> None:
    whole = reference.text(PROMPT, LENGTH)
    word = whole[20:23]
    expected = whole[: whole.index(word)]
    for stream in (False, True):
        fields = {"text_input": PROMPT, "max_tokens": LENGTH, "stream": stream, "stop_words": [word]}
        answers = http_generate(served.http, fields, model, stream)
        assert "".join(answer["text_output"] for answer in answers) == expected
    with DrafthouseClient(served.grpc, model=model) as client:
        result = client.generate(PROMPT, max_tokens=LENGTH, stop=[word])
    assert (result.text, result.finish_reason) == (expected, "stop")


def test_a_word_that_begins_the_answer_leaves_nothing(served: Deployment, reference: Reference) -> None:
    word = reference.text(PROMPT, LENGTH)[:3]
    with DrafthouseClient(served.grpc) as client:
        result = client.generate(PROMPT, max_tokens=LENGTH, stop=[word])
    assert (result.text, result.num_output_tokens, result.finish_reason) == ("", 0, "stop")


def test_the_token_level_model_takes_both_kinds(grpc_caller: GrpcCaller, reference: Reference) -> None:
    """NVIDIA's lists of tokens, of which the one that was met is part of the output, and the kit's words."""
    ids, tokens = reference.codec.encode(PROMPT), reference.tokens(PROMPT, LENGTH)
    span = next(tokens[n : n + 2] for n in range(20, 60) if tokens.index(tokens[n]) == n)
    end = next(n + 2 for n in range(LENGTH) if tokens[n : n + 2] == span)
    listed = np.array([[span, [2, -1]]], np.int32)
    answers = grpc_caller.infer("tensorrt_llm", token_inputs(ids, LENGTH, stop_words_list=listed))
    assert whole_tokens(answers) == tokens[:end]
    assert answers[-1]["text_cut"].item() == 0
    whole = reference.codec.decode(tokens)
    answers = grpc_caller.infer("tensorrt_llm", token_inputs(ids, LENGTH, stop_words=[whole[21:25]]))
    kept = reference.codec.decode(whole_tokens(answers))
    assert kept[: len(kept) - answers[-1]["text_cut"].item()] == whole[: whole.index(whole[21:25])]


@of_each_door
def test_too_many_words_are_refused_before_anything_is_made_of_them(
    grpc_caller: GrpcCaller, model: str
) -> None:
    with pytest.raises(ServerRefusal, match="stop_words holds 5000 words; at most 1024 are taken"):
        grpc_caller.infer(model, text_inputs(PROMPT, stop_words=[f"{n}" for n in range(5000)]))
    with pytest.raises(ServerRefusal, match="stop_words holds 9000 bytes in all; at most 8192"):
        grpc_caller.infer(model, text_inputs(PROMPT, stop_words=["x" * 9000]))
    many = np.array([[[5] * 5000, list(range(1, 5001))]], np.int32)
    with pytest.raises(ServerRefusal, match="stop_words_list holds 5000 words; at most 1024"):
        grpc_caller.infer("tensorrt_llm", token_inputs([5, 6], stop_words_list=many))
    long = np.array([[[5] * 9000, [9000, *[-1] * 8999]]], np.int32)
    with pytest.raises(ServerRefusal, match="stop_words_list holds 9000 tokens in all; at most 8192"):
        grpc_caller.infer("tensorrt_llm", token_inputs([5, 6], stop_words_list=long))
    words = text_inputs(PROMPT)
    words["stop_words"] = np.array([[b"ab", b"\xff"]], object)
    with pytest.raises(ServerRefusal, match="stop_words is not valid UTF-8 at byte 0"):
        grpc_caller.infer(model, words)


@of_each_door
def test_as_many_as_are_taken(grpc_caller: GrpcCaller, reference: Reference, model: str) -> None:
    whole = reference.text(PROMPT, LENGTH)
    words = [f"\x00{n:05}" for n in range(1023)]
    answers = grpc_caller.infer(
        model, text_inputs(PROMPT, max_tokens=LENGTH, stop_words=[*words, whole[33:36]], stream=True)
    )
    assert whole_text(answers) == whole[: whole.index(whole[33:36])]
