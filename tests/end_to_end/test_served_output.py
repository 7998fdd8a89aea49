"""What the served models answer is what the engine decodes, over every way of asking."""

from __future__ import annotations

import numpy as np
import pytest

from engine.request import SamplingParams
from tests.end_to_end.calls import (
    GrpcCaller,
    http_generate,
    text_inputs,
    token_inputs,
    whole_text,
    whole_tokens,
)
from tests.end_to_end.deployment import Deployment
from tests.end_to_end.reference import Reference

pytestmark = pytest.mark.triton

TEXT_MODELS = ("ensemble", "tensorrt_llm_bls")
PROMPTS = ("one two three", "x = [1.5", "Привет, мир.", "the target verifies what")
of_each_text_model = pytest.mark.parametrize("model", TEXT_MODELS)
streamed_or_not = pytest.mark.parametrize("stream", [False, True])


@of_each_text_model
@streamed_or_not
@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_over_grpc(
    grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool, prompt: str
) -> None:
    answers = grpc_caller.infer(model, text_inputs(prompt, max_tokens=48, stream=stream))
    assert whole_text(answers) == reference.text(prompt, 48)
    assert whole_tokens(answers) == reference.tokens(prompt, 48)
    assert (len(answers) > 10) == stream


@of_each_text_model
@streamed_or_not
def test_text_over_http(served: Deployment, reference: Reference, model: str, stream: bool) -> None:
    for prompt in PROMPTS:
        fields = {"text_input": prompt, "max_tokens": 48, "stream": stream}
        answers = http_generate(served.http, fields, model, stream)
        assert "".join(answer["text_output"] for answer in answers) == reference.text(prompt, 48)


@streamed_or_not
def test_token_level_model(grpc_caller: GrpcCaller, reference: Reference, stream: bool) -> None:
    ids = reference.codec.encode(PROMPTS[0])
    answers = grpc_caller.infer("tensorrt_llm", token_inputs(ids, 48, streaming=stream))
    assert whole_tokens(answers) == reference.tokens(PROMPTS[0], 48)
    assert all(answer["sequence_length"].item() == answer["output_ids"].size for answer in answers)


@streamed_or_not
@pytest.mark.parametrize("chances", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 3}])
def test_drafts_of_the_callers_own(
    grpc_caller: GrpcCaller, reference: Reference, stream: bool, chances: dict[str, float]
) -> None:
    """A draft is verified once; `continued_tokens` says how much of the input earlier calls have put out."""
    ids = reference.codec.encode(PROMPTS[0])
    sampling = SamplingParams(**chances)  # type: ignore[arg-type]
    expected = reference.tokens(PROMPTS[0], 30, sampling=sampling)
    for done, draft, accepted in ((0, expected[:4], 4), (5, [*expected[5:7], 1, 2], 2), (8, [0, 0], 0)):
        inputs = token_inputs(
            [*ids, *expected[:done]],
            30 - done,
            streaming=stream,
            return_perf_metrics=True,
            draft_input_ids=np.array([[*draft, -1]], np.int32),
            continued_tokens=done,
            **{"runtime_top_p" if name == "top_p" else name: value for name, value in chances.items()},
        )
        answers = grpc_caller.infer("tensorrt_llm", inputs)
        assert whole_tokens(answers) == expected[done : done + accepted + 1]
        assert answers[-1]["total_draft_tokens"].item() == len(draft)
        assert answers[-1]["total_accepted_draft_tokens"].item() == accepted


def test_drafts_of_a_batch(grpc_caller: GrpcCaller, reference: Reference) -> None:
    ids = reference.codec.encode(PROMPTS[0])
    expected = reference.tokens(PROMPTS[0], 8)
    one = token_inputs(ids, 8)
    inputs = {name: values.repeat(3, axis=0) for name, values in one.items()}
    inputs["draft_input_ids"] = np.array([expected[:3], [expected[0], -1, -1], [-1] * 3], np.int32)
    answers = grpc_caller.infer("tensorrt_llm", inputs)
    rows = {answer["batch_index"].item(): answer["output_ids"].ravel().tolist() for answer in answers}
    assert rows == {0: expected[:4], 1: expected[:2], 2: expected}


@of_each_text_model
@streamed_or_not
def test_batch_of_prompts(grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool) -> None:
    answers = grpc_caller.infer(model, text_inputs(*PROMPTS, max_tokens=24, stream=stream))
    texts = [whole_text(answers, row) for row in range(len(PROMPTS))]
    assert texts == [reference.text(prompt, 24) for prompt in PROMPTS]
    assert all(answer["text_output"].shape == (1,) for answer in answers)


@of_each_text_model
def test_batch_with_values_of_their_own(grpc_caller: GrpcCaller, reference: Reference, model: str) -> None:
    lengths = np.array([[5], [9]], np.int32)
    inputs = {**text_inputs(*PROMPTS[:2]), "max_tokens": lengths}
    answers = grpc_caller.infer(model, inputs)
    assert [whole_text(answers, row) for row in (0, 1)] == [
        reference.text(PROMPTS[0], 5),
        reference.text(PROMPTS[1], 9),
    ]


@of_each_text_model
def test_prompt_in_the_output_if_asked_for(grpc_caller: GrpcCaller, reference: Reference, model: str) -> None:
    continuation = reference.text(PROMPTS[0])
    excluded = grpc_caller.infer(model, text_inputs(PROMPTS[0], exclude_input_in_output=True))
    included = grpc_caller.infer(model, text_inputs(PROMPTS[0], exclude_input_in_output=False))
    assert whole_text(excluded) == continuation
    assert whole_text(included) == PROMPTS[0] + continuation
    assert included[0]["num_output_tokens"].item() == excluded[0]["num_output_tokens"].item() == 16


@of_each_text_model
@pytest.mark.parametrize("drafted", [0, 7])
def test_end_id_ends_the_output_and_is_not_part_of_it(
    grpc_caller: GrpcCaller, reference: Reference, model: str, drafted: int
) -> None:
    tokens = reference.tokens(PROMPTS[0], 64)
    end_id = next(token for n, token in enumerate(tokens) if n > 20 and token not in tokens[:n])
    inputs = text_inputs(PROMPTS[0], max_tokens=64, end_id=end_id, num_draft_tokens=drafted, stream=True)
    answers = grpc_caller.infer(model, inputs)
    assert whole_tokens(answers) == tokens[: tokens.index(end_id)]
    assert answers[-1]["num_output_tokens"].item() == tokens.index(end_id)


@of_each_text_model
@streamed_or_not
def test_end_at_once_gives_empty_text(
    grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool
) -> None:
    end_id = reference.tokens(PROMPTS[0])[0]
    answers = grpc_caller.infer(model, text_inputs(PROMPTS[0], end_id=end_id, stream=stream))
    assert whole_text(answers) == ""
    assert answers[-1]["num_output_tokens"].item() == 0


@of_each_text_model
@pytest.mark.parametrize("name", ["min_length", "min_tokens"])
def test_no_end_before_the_least_length(
    grpc_caller: GrpcCaller, reference: Reference, model: str, name: str
) -> None:
    end_id = reference.tokens(PROMPTS[0])[0]
    expected = reference.tokens(PROMPTS[0], 24, end_ids=frozenset({end_id}), min_tokens=12)
    assert len(expected) >= 12
    answers = grpc_caller.infer(model, text_inputs(PROMPTS[0], max_tokens=24, end_id=end_id, **{name: 12}))
    assert whole_tokens(answers) == expected


@of_each_text_model
@streamed_or_not
def test_log_probs(grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool) -> None:
    expected = reference.outcome(PROMPTS[0], 24, return_log_probs=True).log_probs
    inputs = text_inputs(PROMPTS[0], max_tokens=24, return_log_probs=True, stream=stream)
    answers = grpc_caller.infer(model, inputs)
    given = np.concatenate([answer["output_log_probs"].ravel() for answer in answers])
    np.testing.assert_array_equal(given, np.array(expected, np.float32))
    assert answers[-1]["cum_log_probs"].item() == pytest.approx(sum(expected), rel=1e-6)


@of_each_text_model
@pytest.mark.parametrize("name", ["seed", "random_seed"])
def test_seeded_samples(grpc_caller: GrpcCaller, reference: Reference, model: str, name: str) -> None:
    chances = {"temperature": 1.3, "top_k": 40, "top_p": 0.9}
    params = SamplingParams(**chances, seed=2**63 + 5)  # type: ignore[arg-type]
    expected = reference.tokens(PROMPTS[1], 48, sampling=params)
    assert expected != reference.tokens(PROMPTS[1], 48)
    for drafted in (0, 7):
        inputs = text_inputs(
            PROMPTS[1], max_tokens=48, **chances, **{name: 2**63 + 5}, num_draft_tokens=drafted
        )
        assert whole_tokens(grpc_caller.infer(model, inputs)) == expected


def test_samples_without_a_seed_differ(grpc_caller: GrpcCaller) -> None:
    inputs = text_inputs(PROMPTS[1], max_tokens=32, temperature=1.5)
    first, second = (whole_tokens(grpc_caller.infer("ensemble", inputs)) for _ in range(2))
    assert first != second


def test_another_seed_gives_another_sample(grpc_caller: GrpcCaller) -> None:
    samples = [
        whole_tokens(
            grpc_caller.infer("ensemble", text_inputs(PROMPTS[1], max_tokens=32, temperature=1.5, seed=seed))
        )
        for seed in (1, 2)
    ]
    assert samples[0] != samples[1]


@pytest.mark.parametrize(
    "greedy", [{}, {"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}, {"top_p": 0.0}]
)
def test_greedy_in_all_its_spellings(
    grpc_caller: GrpcCaller, reference: Reference, greedy: dict[str, float]
) -> None:
    answers = grpc_caller.infer("ensemble", text_inputs(PROMPTS[0], **greedy))
    assert whole_tokens(answers) == reference.tokens(PROMPTS[0])


def test_neutral_values_of_unsupported_parameters_are_taken(
    grpc_caller: GrpcCaller, reference: Reference
) -> None:
    """As LlamaIndex's connector and NVIDIA's own clients send them."""
    neutral = {
        **{"beam_width": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "length_penalty": 1.0},
        **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "bad_words": [""], "stop_words": [""]},
        **{"pad_id": 2, "return_context_logits": False, "return_generation_logits": False},
    }
    answers = grpc_caller.infer("ensemble", text_inputs(PROMPTS[0], **neutral))
    assert whole_text(answers) == reference.text(PROMPTS[0])
