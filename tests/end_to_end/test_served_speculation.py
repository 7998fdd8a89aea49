"""`tensorrt_llm_bls` drafts, with a second model and with n-grams: the output is the target's own, token for token."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from client import DrafthouseClient
from engine.request import SamplingParams
from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    Tensors,
    http_generate,
    http_vanish,
    responses,
    text_inputs,
    token_inputs,
    whole_text,
    whole_tokens,
)
from tests.end_to_end.conftest import DRAFT_LENGTH
from tests.end_to_end.deployment import MAX_BATCH_SIZE, MAX_SEQUENCE_LENGTH, Deployment, wait_until
from tests.end_to_end.reference import Reference

pytestmark = pytest.mark.triton

DRAFTERS = ("tensorrt_llm_bls", "bls_anpd", "bls_lookup")
BOTH_MODELS = ("tensorrt_llm", "tensorrt_llm_draft")
PROMPTS = (
    *("one two three", "x = [1.5", "Привет, мир.", "the target verifies what"),
    *("for number in range(", "a chain is a tree", "Grüße aus", "two three four five two three"),
)
of_each_drafter = pytest.mark.parametrize("model", DRAFTERS)
streamed_or_not = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture
def served(speculating_deployment: Deployment) -> Iterator[Deployment]:
    """The server; whatever a test did, target and draft must both be idle afterwards."""
    yield speculating_deployment
    wait_until(lambda: idle(speculating_deployment), "target and draft model hold nothing")


def idle(served: Deployment) -> bool:
    return all(served.is_idle(model) for model in BOTH_MODELS)


@pytest.fixture(scope="module")
def reference(speculating_deployment: Deployment) -> Reference:
    return Reference(speculating_deployment.engine)


@pytest.fixture
def grpc_caller(served: Deployment) -> Iterator[GrpcCaller]:
    with GrpcCaller(served.grpc) as caller:
        yield caller


def figures(answers: list[Tensors]) -> dict[str, Any]:
    return {name: values.item() for name, values in answers[-1].items() if values.size == 1}


@of_each_drafter
@streamed_or_not
def test_eight_requests_at_once(served: Deployment, reference: Reference, model: str, stream: bool) -> None:
    """Equal to the target's own greedy output through `tensorrt_llm`, in fewer steps than tokens."""

    def ask(prompt: str) -> tuple[list[Tensors], list[Tensors]]:
        with GrpcCaller(served.grpc) as caller:
            inputs = text_inputs(prompt, max_tokens=60, stream=stream, return_perf_metrics=True)
            plain = caller.infer("tensorrt_llm", token_inputs(reference.codec.encode(prompt), 60))
            return caller.infer(model, inputs), plain

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        results = list(pool.map(ask, PROMPTS))
    accepted = drafted = 0
    for prompt, (answers, plain) in zip(PROMPTS, results, strict=True):
        assert whole_tokens(answers) == whole_tokens(plain) == reference.tokens(prompt, 60)
        assert whole_text(answers) == reference.text(prompt, 60)
        final = figures(answers)
        assert final["num_output_tokens"] == 60
        assert final["num_input_tokens"] == len(reference.codec.encode(prompt))
        assert final["acceptance_rate"] == pytest.approx(
            final["total_accepted_draft_tokens"] / max(1, final["total_draft_tokens"]), rel=1e-6
        )
        times = [
            final[f"{name}_time_ns"] for name in ("arrival", "first_scheduled", "first_token", "last_token")
        ]
        assert 0 < times[0] and times == sorted(times)
        if stream:  # a response a step, and a step emits what it accepts and one token of the target's own
            assert len(answers) == 60 - final["total_accepted_draft_tokens"]
        accepted += final["total_accepted_draft_tokens"]
        drafted += final["total_draft_tokens"]
    assert 0 < accepted <= drafted
    if model == "tensorrt_llm_bls":  # the draft is the target in another precision
        assert accepted > 0.8 * drafted


@of_each_drafter
def test_over_http(served: Deployment, reference: Reference, model: str) -> None:
    for stream in (False, True):
        fields = {"text_input": PROMPTS[2], "max_tokens": 48, "stream": stream}
        answers = http_generate(served.http, fields, model, stream)
        assert "".join(answer["text_output"] for answer in answers) == reference.text(PROMPTS[2], 48)


@of_each_drafter
@streamed_or_not
def test_batch_with_draft_lengths_of_its_own(
    grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool
) -> None:
    """One of the rows is not drafted for at all, one asks for more than there is."""
    inputs = text_inputs(*PROMPTS[:4], max_tokens=40, stream=stream, return_perf_metrics=True)
    inputs["num_draft_tokens"] = np.array([[0], [1], [3], [99]], np.int32)
    answers = grpc_caller.infer(model, inputs)
    drafted = []
    for row, prompt in enumerate(PROMPTS[:4]):
        of_row = [answer for answer in answers if answer["batch_index"].item() == row]
        assert whole_tokens(of_row) == reference.tokens(prompt, 40)
        assert whole_text(answers, row) == reference.text(prompt, 40)
        drafted.append(figures(of_row)["total_draft_tokens"])
        emitted = [answer["output_ids"].size for answer in of_row]
        assert not stream or max(emitted) <= 1 + (0, 1, 3, DRAFT_LENGTH)[row]
    assert drafted[0] == 0 < min(drafted[1:])


@of_each_drafter
@pytest.mark.parametrize("seed_name", ["seed", "random_seed"])
def test_seeded_samples_are_those_of_plain_decoding(
    grpc_caller: GrpcCaller, reference: Reference, model: str, seed_name: str
) -> None:
    chances = {"temperature": 1.1, "top_k": 30, "top_p": 0.9}
    for seed, prompt in enumerate(PROMPTS[:4]):
        sampling = SamplingParams(**chances, seed=seed)  # type: ignore[arg-type]
        inputs = text_inputs(prompt, max_tokens=40, **chances, **{seed_name: seed})
        assert whole_tokens(grpc_caller.infer(model, inputs)) == reference.tokens(
            prompt, 40, sampling=sampling
        )


@of_each_drafter
def test_samples_without_a_seed_differ(grpc_caller: GrpcCaller, model: str) -> None:
    inputs = text_inputs(PROMPTS[1], max_tokens=32, temperature=1.5)
    first, second = (whole_tokens(grpc_caller.infer(model, inputs)) for _ in range(2))
    assert first != second


@of_each_drafter
@streamed_or_not
def test_log_probs(grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool) -> None:
    expected = reference.outcome(PROMPTS[0], 40, return_log_probs=True).log_probs
    inputs = text_inputs(PROMPTS[0], max_tokens=40, return_log_probs=True, stream=stream)
    answers = grpc_caller.infer(model, inputs)
    given = np.concatenate([answer["output_log_probs"].ravel() for answer in answers])
    np.testing.assert_array_equal(given, np.array(expected, np.float32))
    assert answers[-1]["cum_log_probs"].item() == pytest.approx(sum(expected), rel=1e-5)


class TestEnds:
    @of_each_drafter
    @streamed_or_not
    def test_stop_words(
        self, grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool
    ) -> None:
        """Over all calls of the target, whatever tokens they are made of."""
        tokens = reference.tokens(PROMPTS[3], 64)
        whole = reference.codec.decode(tokens)
        for begin in range(10, 40, 9):
            word = whole[begin : begin + 5]
            inputs = text_inputs(PROMPTS[3], max_tokens=64, stop_words=["absent", word], stream=stream)
            answers = grpc_caller.infer(model, inputs)
            assert whole_text(answers) == whole[: whole.index(word)]
            kept = whole_tokens(answers)
            assert kept == tokens[: len(kept)]
            assert figures(answers)["num_output_tokens"] == len(kept)

    @of_each_drafter
    @streamed_or_not
    def test_end_id(self, grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool) -> None:
        tokens = reference.tokens(PROMPTS[0], 64)
        for number in range(0, 40, 3):
            end_id = tokens[number]
            inputs = text_inputs(PROMPTS[0], max_tokens=64, end_id=end_id, stream=stream)
            expected = tokens[: tokens.index(end_id)]
            answers = grpc_caller.infer(model, inputs)
            assert whole_tokens(answers) == expected
            assert figures(answers)["num_output_tokens"] == len(expected)

    @of_each_drafter
    def test_least_length(self, grpc_caller: GrpcCaller, reference: Reference, model: str) -> None:
        end_id = reference.tokens(PROMPTS[0])[0]
        for least in (3, 9, 24):
            expected = reference.tokens(PROMPTS[0], 24, end_ids=frozenset({end_id}), min_tokens=least)
            inputs = text_inputs(PROMPTS[0], max_tokens=24, end_id=end_id, min_length=least)
            assert whole_tokens(grpc_caller.infer(model, inputs)) == expected

    @of_each_drafter
    @pytest.mark.parametrize("length", [1, 2, 3, 7])
    def test_short_outputs(
        self, grpc_caller: GrpcCaller, reference: Reference, model: str, length: int
    ) -> None:
        answers = grpc_caller.infer(model, text_inputs(PROMPTS[0], max_tokens=length))
        assert whole_tokens(answers) == reference.tokens(PROMPTS[0], length)

    @of_each_drafter
    def test_prompt_in_the_output(self, grpc_caller: GrpcCaller, reference: Reference, model: str) -> None:
        answers = grpc_caller.infer(model, text_inputs(PROMPTS[0], exclude_input_in_output=False))
        assert whole_text(answers) == PROMPTS[0] + reference.text(PROMPTS[0])


class TestDepartures:
    ENDLESS = 32000

    @of_each_drafter
    def test_cancelled_stream(self, served: Deployment, grpc_caller: GrpcCaller, model: str) -> None:
        stream = grpc_caller.open(model, text_inputs("one", max_tokens=self.ENDLESS, stream=True))
        received = responses(stream)
        for _ in range(3):
            next(received)
        stream.cancel()
        wait_until(lambda: idle(served), "both models are idle")
        self.expect_silence(served)

    @of_each_drafter
    def test_client_leaves_while_it_waits_for_a_whole_answer(self, served: Deployment, model: str) -> None:
        with DrafthouseClient(served.grpc, model=model) as client:
            for _ in client.stream("one", max_tokens=self.ENDLESS):
                break
        wait_until(lambda: idle(served), "both models are idle")
        self.expect_silence(served)

    @of_each_drafter
    def test_http_client_that_vanishes(self, served: Deployment, model: str) -> None:
        fields = {"text_input": "one", "max_tokens": self.ENDLESS, "stream": True}
        http_vanish(
            served.http, f"/v2/models/{model}/generate_stream", json.dumps(fields).encode(), read=2000
        )
        wait_until(lambda: idle(served), "both models are idle")
        self.expect_silence(served)

    @of_each_drafter
    def test_batch_that_is_cancelled(self, served: Deployment, grpc_caller: GrpcCaller, model: str) -> None:
        stream = grpc_caller.open(model, text_inputs("one", "x", "zz", max_tokens=self.ENDLESS, stream=True))
        next(responses(stream))
        stream.cancel()
        wait_until(lambda: idle(served), "both models are idle")
        self.expect_silence(served)

    def test_one_shot_call_is_stopped_while_the_target_works(
        self, served: Deployment, grpc_caller: GrpcCaller
    ) -> None:
        """Nothing is drafted, so all of it is a single call, which is told that its client has gone."""
        inputs = text_inputs("one", max_tokens=self.ENDLESS, num_draft_tokens=0)
        call = grpc_caller.open("tensorrt_llm_bls", inputs)
        wait_until(lambda: served.running() == 1, "the target works")
        call.cancel()
        wait_until(lambda: idle(served), "the target is idle")

    def expect_silence(self, served: Deployment) -> None:
        """A loop that went on would make the next call within milliseconds, and the counter would never stand."""

        def stands() -> bool:
            drafted = served.metrics()["trtllm_spec_decode_num_draft_tokens_total"]
            time.sleep(0.3)
            return served.metrics()["trtllm_spec_decode_num_draft_tokens_total"] == drafted

        wait_until(stands, "nothing is drafted any more")
        assert idle(served)


class TestRefusals:
    def test_draft_model_that_is_not_there(self, grpc_caller: GrpcCaller, reference: Reference) -> None:
        with pytest.raises(ServerRefusal, match=r"draft model .no_such_model.* is not ready"):
            grpc_caller.infer("bls_lost", text_inputs("one"))
        answers = grpc_caller.infer("bls_lost", text_inputs("one", num_draft_tokens=0))
        assert whole_tokens(answers) == reference.tokens("one")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_draft_tokens": -2}, "num_draft_tokens is -2; it must be 0"),
            ({"use_draft_logits": True}, "use_draft_logits is not supported by tensorrt_llm_bls"),
            ({"beam_width": 2}, "beam_width is 2; tensorrt_llm_bls with drafts supports only 0 or 1"),
            ({"presence_penalty": 0.5}, "presence_penalty is 0.5; tensorrt_llm_bls with drafts"),
            ({"max_tokens": 0}, "max_tokens is 0"),
            ({"max_tokens": MAX_SEQUENCE_LENGTH}, f"more than the limit of {MAX_SEQUENCE_LENGTH}"),
            ({"temperature": -1.0}, "temperature is -1"),
            ({"repetition_penalty": 1.5}, "repetition_penalty is 1.5"),
        ],
    )
    @of_each_drafter
    def test_what_cannot_be_drafted_for(
        self, grpc_caller: GrpcCaller, model: str, fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ServerRefusal, match=message):
            grpc_caller.infer(model, text_inputs("one two", **fields))

    @of_each_drafter
    def test_one_bad_row_ends_the_request(self, grpc_caller: GrpcCaller, model: str) -> None:
        inputs = text_inputs("one two", "three", max_tokens=4000, stream=True)
        inputs["end_id"] = np.array([[3], [100_000]], np.int32)
        with pytest.raises(ServerRefusal, match="end token 100000"):
            grpc_caller.infer(model, inputs)

    def test_overload_is_refused_at_the_start_and_nobody_half_way(
        self, served: Deployment, reference: Reference
    ) -> None:
        """More streams than slots and queue: some are told so at once, the others all come to their end."""

        def ask(number: int) -> list[int] | None:
            with GrpcCaller(served.grpc) as caller:
                stream = responses(
                    caller.open("tensorrt_llm_bls", text_inputs("one", max_tokens=40, stream=True))
                )
                first = next(stream, None) if number else next(stream)
                return None if first is None else whole_tokens([first, *stream])

        def guarded(number: int) -> list[int] | None:
            try:
                return ask(number)
            except ServerRefusal as error:
                assert "the queue is full" in str(error)
                return None

        with ThreadPoolExecutor(3 * MAX_BATCH_SIZE) as pool:
            outcomes = list(pool.map(guarded, range(3 * MAX_BATCH_SIZE)))
        finished = [tokens for tokens in outcomes if tokens is not None]
        assert len(finished) >= MAX_BATCH_SIZE
        assert all(tokens == reference.tokens("one", 40) for tokens in finished)


def test_counters_agree_with_the_requests(grpc_caller: GrpcCaller, served: Deployment) -> None:
    names = ("trtllm_spec_decode_num_draft_tokens_total", "trtllm_spec_decode_num_accepted_tokens_total")
    before = served.metrics()
    totals = np.zeros(2, int)
    for model in DRAFTERS:
        for prompt in PROMPTS[:3]:
            inputs = text_inputs(prompt, max_tokens=50, return_perf_metrics=True)
            final = figures(grpc_caller.infer(model, inputs))
            totals += [final["total_draft_tokens"], final["total_accepted_draft_tokens"]]
    expected = [before[name] + total for name, total in zip(names, totals, strict=True)]
    wait_until(lambda: [served.metrics()[name] for name in names] == expected, f"{names} are {expected}")
    assert not any(name.startswith("trtllm_spec") for name in served.metrics("tensorrt_llm_draft"))


def test_calls_find_the_cache_of_earlier_ones(grpc_caller: GrpcCaller) -> None:
    """A generation of 60 tokens in many calls takes a new block now and then, and finds all others."""
    inputs = text_inputs(PROMPTS[0], max_tokens=200, return_perf_metrics=True)
    final = figures(grpc_caller.infer("bls_anpd", inputs))
    calls = 200 - final["total_accepted_draft_tokens"]
    assert final["kv_cache_alloc_new_blocks"] < 20 < calls
    assert final["kv_cache_reused_blocks"] > calls
