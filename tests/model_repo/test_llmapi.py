"""The kit's `llmapi` model and what stands before it, on a real Triton: the contract, streaming text, figures, ends."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from client import DrafthouseClient
from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_generate,
    text_inputs,
    whole_text,
    whole_tokens,
)
from tests.end_to_end.deployment import wait_until
from tests.model_repo.llmapi_server import BEGIN, LlmApiServer, serving_llm_api

pytestmark = pytest.mark.triton
DRAFT_LENGTH = 4
DOORS = ("ensemble", "tensorrt_llm_bls")
# What mpirun says of its job, and what a site says of its network.
MPI = {"PMIX_RANK": "0", "PMIX_NAMESPACE": "job", "OMPI_COMM_WORLD_RANK": "0", "PMIX_MCA_gds": "hash"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmApiServer]:
    """ANPD as a user-provided drafter, with a tokenizer whose characters come apart into bytes."""
    folder = tmp_path_factory.mktemp("llm-api")
    method = {"method": "anpd", "draft_length": DRAFT_LENGTH, "ngram": 3, "max_concurrency": 6}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in MPI.items():
            patched.setenv(name, value)
        with serving_llm_api(folder, method, tokenizer="byte-fallback") as server:
            yield server


@pytest.fixture
def caller(served: LlmApiServer) -> Iterator[GrpcCaller]:
    with GrpcCaller(served.grpc) as caller:
        yield caller


def llmapi_inputs(prompt: str, **others: Any) -> dict[str, Any]:
    """Inputs of NVIDIA's `llmapi` model: one-dimensional."""
    rows = text_inputs(prompt, **others)
    return {
        name if name in ("text_input", "streaming", "stop") else f"sampling_param_{name}": value[0]
        for name, value in rows.items()
    }


@pytest.mark.parametrize("door", DOORS)
def test_streamed_text_has_no_seams(served: LlmApiServer, caller: GrpcCaller, door: str) -> None:
    answers = caller.infer(door, text_inputs("Once", max_tokens=60, stream=True))
    assert whole_text(answers) == served.text(60)
    assert whole_tokens(answers) == served.tokens(60)
    assert len(answers) > 5
    pieces = [answer["text_output"].ravel()[0].decode() for answer in answers]
    assert sum(map(bool, pieces)) > 5, "the text comes in many pieces"


@pytest.mark.parametrize("door", DOORS)
def test_an_unstreamed_answer_is_one_response(served: LlmApiServer, caller: GrpcCaller, door: str) -> None:
    (answer,) = caller.infer(door, text_inputs("Once", max_tokens=60))
    assert answer["text_output"].shape == (1,)
    assert whole_text([answer]) == served.text(60)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_last_response_says_that_it_is_the_last(caller: GrpcCaller, door: str, rows: int) -> None:
    """Clients that have not asked for empty responses would never see an end of its own."""
    stream = caller.open(door, text_inputs(*["Once"] * rows, max_tokens=20, stream=True))
    answers = [message.infer_response for message in stream]
    assert all(answer.outputs for answer in answers)
    ends = [answer.parameters["triton_final_response"].bool_param for answer in answers]
    assert ends == [False] * (len(answers) - 1) + [True]


@pytest.mark.parametrize("door", DOORS)
def test_rows_of_a_batch_stream_side_by_side(served: LlmApiServer, caller: GrpcCaller, door: str) -> None:
    lengths = np.array([[40], [7], [23]], np.int32)
    answers = caller.infer(door, text_inputs("a", "b", "c", max_tokens=lengths, stream=True))
    for row, length in enumerate(lengths.ravel().tolist()):
        assert whole_text(answers, row) == served.text(length)
    order = [int(answer["batch_index"].ravel()[0]) for answer in answers]
    assert order != sorted(order)


def test_the_prompt_precedes_the_output_where_it_is_wanted(served: LlmApiServer, caller: GrpcCaller) -> None:
    inputs = text_inputs("Once upon", max_tokens=12, exclude_input_in_output=False)
    assert whole_text(caller.infer("ensemble", inputs)) == served.text(12, after="Once upon")


@pytest.mark.parametrize("door", [*DOORS, "tensorrt_llm"])
def test_a_chat_that_spells_its_beginning_gets_no_second_one(
    served: LlmApiServer, caller: GrpcCaller, door: str
) -> None:
    before = len(served.journal())
    inputs = llmapi_inputs if door == "tensorrt_llm" else text_inputs
    for prompt in ("Once", f"{BEGIN}Once"):
        caller.infer(door, inputs(prompt, max_tokens=3))
    asked = [entry for entry in served.journal()[before:] if "prompt" in entry]
    assert [entry["sampling"]["add_special_tokens"] for entry in asked] == [True, False]


def test_nvidias_llmapi_tensors_work_as_they_are(served: LlmApiServer, caller: GrpcCaller) -> None:
    inputs = llmapi_inputs("Once", max_tokens=30, return_perf_metrics=True)
    (answer,) = caller.infer("tensorrt_llm", inputs)
    assert answer["text_output"].ravel()[0].decode() == served.text(30)
    assert answer["acceptance_rate"].dtype == np.float32
    assert answer["kv_cache_reused_block"].tolist() == [1]
    assert answer["kv_cache_hit_rate"].tolist() == [0.25]
    assert answer["arrival_time_ns"][0] >= 100_000_000_000
    streamed = caller.infer("tensorrt_llm", llmapi_inputs("Once", max_tokens=30, streaming=True))
    texts = [item["text_output"].ravel()[0].decode() for item in streamed]
    assert texts[-1] == served.text(30)
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts)), "the text so far"


def test_the_drafter_runs_and_its_acceptance_is_counted(served: LlmApiServer, caller: GrpcCaller) -> None:
    before = len(served.journal())
    inputs = text_inputs("Once", max_tokens=200, return_perf_metrics=True)
    (answer,) = caller.infer("ensemble", inputs)
    end = next(entry for entry in served.journal()[before:] if "end" in entry)
    assert end["steps"] < 0.7 * 200, "the text repeats itself, which n-grams follow"
    assert answer["acceptance_source"].ravel()[0] == b"avg_decoded_tokens_per_iter"
    assert int(answer["total_accepted_draft_tokens"].ravel()[0]) == 200 - end["steps"]
    most = int(answer["total_draft_tokens"].ravel()[0])
    assert most == DRAFT_LENGTH * (end["steps"] - 1) >= end["drafted"]
    assert answer["acceptance_rate"].ravel()[0] == pytest.approx((200 - end["steps"]) / most)


def test_the_configuration_says_too_when_to_draft(served: LlmApiServer) -> None:
    """CUDA graphs for steps without drafts are captured by what stands there, not in the drafter."""
    loaded = served.journal()[0]["loaded"]
    assert loaded["max_concurrency"] == loaded["drafter"] == 6


def test_workers_find_the_drafter_and_the_site_s_settings(served: LlmApiServer) -> None:
    environment = served.journal()[0]["loaded"]["environment"]
    *before, last = environment["PYTHONPATH"].split(":")
    assert last == str(served.repository / "tensorrt_llm" / "1"), "behind whatever else is there"
    assert before, "the server's own"
    kept = {name: value for name, value in environment.items() if name.startswith(("PMIX_", "OMPI_"))}
    assert kept == {"PMIX_MCA_gds": "hash"}


def test_the_kits_client_reads_it_as_any_other_engine(served: LlmApiServer) -> None:
    for protocol, address in (("grpc", served.grpc), ("http", served.http)):
        with DrafthouseClient(address, protocol=protocol) as client:  # type: ignore[arg-type]
            stream = client.stream("Once", max_tokens=50)
            assert "".join(chunk.text for chunk in stream) == served.text(50)
            result = stream.result
        assert result.num_output_tokens == 50
        assert result.acceptance is not None and (result.acceptance.length or 0) > 1


def test_http_generate(served: LlmApiServer) -> None:
    (answer,) = http_generate(served.http, {"text_input": "Once", "max_tokens": 9})
    assert answer["text_output"] == served.text(9)
    (answer,) = http_generate(
        served.http, {"text_input": "Once", "sampling_param_max_tokens": 9}, model="tensorrt_llm"
    )
    assert answer["text_output"] == served.text(9)


def test_sampling_arguments_arrive(served: LlmApiServer, caller: GrpcCaller) -> None:
    sampled = {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.0,
        "seed": 11,
        "min_tokens": 2,
        "repetition_penalty": 1.5,
    }
    caller.infer("ensemble", text_inputs("Once", max_tokens=3, bad_words=["!"], **sampled))
    got = [entry["sampling"] for entry in served.journal() if "sampling" in entry][-1]
    expected = {**sampled, "top_p": 1.0, "max_tokens": 3, "bad": ["!"]}
    assert {name: got[name] for name in expected} == expected
    caller.infer("ensemble", text_inputs("Once", max_tokens=3, temperature=0.0, top_p=0.9))
    greedy = [entry["sampling"] for entry in served.journal() if "sampling" in entry][-1]
    assert greedy["temperature"] is greedy["top_p"] is greedy["top_k"] is None, "neither is what greedy is"
    guide = {"guided_decoding_guide_type": ["regex"], "guided_decoding_guide": ["[a-z]+"]}
    caller.infer("ensemble", text_inputs("Once", max_tokens=3, **guide))
    guided = [entry["sampling"] for entry in served.journal() if "sampling" in entry][-1]
    assert guided["guided_decoding"]["regex"] == "[a-z]+"


@pytest.mark.parametrize("door", DOORS)
def test_the_salt_of_the_cache_arrives(served: LlmApiServer, caller: GrpcCaller, door: str) -> None:
    for salt in (None, "mine"):
        caller.infer(door, text_inputs("Once", max_tokens=3, **({"cache_salt": [salt]} if salt else {})))
        assert [entry["cache_salt"] for entry in served.journal() if "sampling" in entry][-1] == salt


@pytest.mark.parametrize("model", [*DOORS, "tensorrt_llm"])
def test_a_misspelt_field_is_refused_by_name(served: LlmApiServer, model: str) -> None:
    right = "max_tokens" if model in DOORS else "sampling_param_max_tokens"
    with pytest.raises(ServerRefusal, match=f"unknown parameter '{right[:-1]}'; did you mean {right}"):
        http_generate(served.http, {"text_input": "Once", right: 9, right[:-1]: 3}, model=model)


def test_log_probabilities_of_streamed_tokens(served: LlmApiServer, caller: GrpcCaller) -> None:
    answers = caller.infer("ensemble", text_inputs("Once", max_tokens=20, stream=True, return_log_probs=True))
    each = np.concatenate([answer["output_log_probs"].ravel() for answer in answers])
    assert each.tolist() == [-0.5] * 20
    assert answers[-1]["cum_log_probs"].ravel().tolist() == [-10.0]
    (without,) = caller.infer("ensemble", text_inputs("Once", max_tokens=20, return_log_probs=False))
    assert not without["cum_log_probs"].any()


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"beam_width": 2}, "beam_width"),
        ({"num_draft_tokens": 3}, "num_draft_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"embedding_bias_words": ["x"]}, "embedding_bias_words"),
        ({"guided_decoding_guide_type": ["poem"]}, "json_schema"),
    ],
)
def test_refusals_name_the_tensor(caller: GrpcCaller, inputs: dict[str, Any], told: str) -> None:
    with pytest.raises(ServerRefusal, match=told):
        caller.infer("ensemble", text_inputs("Once", **inputs))


def test_what_the_llm_refuses_or_breaks_reaches_the_client(served: LlmApiServer, caller: GrpcCaller) -> None:
    with pytest.raises(ServerRefusal, match="more than the engine takes"):
        caller.infer("ensemble", text_inputs("too much"))
    # The client is told no more of a fault than where it stands; its text may name files, or what others have asked.
    internal = r"internal error [0-9a-f]{8}; the server's log says more"
    # Not the ensemble: tritonserver 2.51 does tell, but then cannot unload it for as long as it waits.
    for streamed in (True, False):
        with pytest.raises(ServerRefusal, match=internal):
            caller.infer("tensorrt_llm_bls", text_inputs("fail", max_tokens=60, stream=streamed))
    with pytest.raises(ServerRefusal, match=internal):
        caller.infer("tensorrt_llm", llmapi_inputs("fail", max_tokens=60, streaming=True))
    with pytest.raises(ServerRefusal, match=internal):
        caller.infer("ensemble", text_inputs("fail", max_tokens=60))
    assert served.log.count("RuntimeError: the executor died\n") == 4
    assert whole_text(caller.infer("ensemble", text_inputs("Once", max_tokens=8))) == served.text(8)


@pytest.mark.parametrize("door", DOORS)
def test_a_client_that_leaves_ends_its_generation(
    served: LlmApiServer, caller: GrpcCaller, door: str
) -> None:
    before = len(served.journal())
    stream = caller.open(door, text_inputs("Once", max_tokens=8000, stream=True))
    next(iter(stream))
    stream.cancel()
    wait_until(
        lambda: any(entry.get("end") == "cancelled" for entry in served.journal()[before:]), "it was aborted"
    )


def test_stop_ends_the_generation_of_that_id(served: LlmApiServer, caller: GrpcCaller) -> None:
    stream = caller.open("tensorrt_llm", llmapi_inputs("Once", max_tokens=8000, streaming=True), "mine")
    iterator = iter(stream)
    next(iterator)
    with GrpcCaller(served.grpc) as other:
        other.infer("tensorrt_llm", llmapi_inputs("", stop=True), "mine")
    assert sum(1 for _ in iterator) < 8000
    with pytest.raises(ServerRefusal, match="no id"):
        caller.infer("tensorrt_llm", llmapi_inputs("", stop=True))


def test_eight_at_once(served: LlmApiServer) -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        with GrpcCaller(served.grpc) as caller:
            inputs = text_inputs("Once", max_tokens=20 + number, stream=True)
            texts[number] = whole_text(caller.infer("ensemble", inputs))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: served.text(20 + number) for number in range(8)}


@pytest.fixture(scope="module")
def reporting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmApiServer]:
    """A method that YAML can say, on a release that reports its figures."""
    method = {"method": "prompt_lookup", "draft_length": 3}
    with serving_llm_api(tmp_path_factory.mktemp("reporting"), method, reports=True) as server:
        yield server


def test_reported_figures_are_passed_on(reporting: LlmApiServer) -> None:
    with GrpcCaller(reporting.grpc) as caller:
        (answer,) = caller.infer("ensemble", text_inputs("Once", max_tokens=64, return_perf_metrics=True))
    end = next(entry for entry in reporting.journal() if "end" in entry)
    assert answer["acceptance_source"].ravel()[0] == b"tensorrt_llm"
    assert int(answer["total_draft_tokens"].ravel()[0]) == end["drafted"]
    assert int(answer["total_accepted_draft_tokens"].ravel()[0]) == end["accepted"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_words_are_text(served: LlmApiServer, caller: GrpcCaller, door: str, stream: bool) -> None:
    """TensorRT-LLM would look for their tokens, which the output does not have: they are joined with others."""
    whole = served.text(90)
    for word in ("aft 世", "ses, ", "\u200d", " verif", "the"):
        before = len(served.journal())
        options: dict[str, Any] = {"return_log_probs": True, "return_perf_metrics": True}
        inputs = text_inputs("Once", max_tokens=90, stop_words=["#", word], stream=stream, **options)
        answers = caller.infer(door, inputs)
        expected = whole[: whole.index(word)]
        assert whole_text(answers) == expected
        kept = whole_tokens(answers)
        assert kept == served.tokens(90)[: len(kept)]
        assert int(answers[-1]["num_output_tokens"].ravel()[0]) == len(kept)
        assert sum(answer["output_log_probs"].size for answer in answers) >= len(kept)
        (end,) = [entry for entry in served.journal()[before:] if "end" in entry]
        assert (end["end"], end["tokens"] < 90) == ("cancelled", True), "the generation is ended"
        assert int(answers[-1]["total_accepted_draft_tokens"].ravel()[0]) <= max(0, end["tokens"] - 1)


def test_stop_words_by_nvidias_llmapi_tensors(served: LlmApiServer, caller: GrpcCaller) -> None:
    whole, word = served.text(90), "ses, "
    inputs = llmapi_inputs("Once", max_tokens=90, streaming=True)
    inputs |= {"sampling_param_stop": np.array([word.encode()], object)}
    inputs |= {f"return_{name}_reason": np.array([True]) for name in ("stop", "finish")}
    answers = caller.infer("tensorrt_llm", inputs)
    texts = [answer["text_output"].ravel()[0].decode() for answer in answers]
    expected = whole[: whole.index(word)]
    assert texts[-1] == expected and all(expected.startswith(text) for text in texts)
    assert answers[-1]["stop_reason"].ravel()[0] == word.encode()
    assert answers[-1]["finish_reason"].ravel()[0] == b"stop"


def test_a_word_that_ends_the_last_token_is_found_too(served: LlmApiServer, caller: GrpcCaller) -> None:
    whole = served.text(7)
    answers = caller.infer("ensemble", text_inputs("Once", max_tokens=7, stop_words=[whole[-2:]]))
    assert whole_text(answers) == whole[: whole.index(whole[-2:])]


def test_too_many_stop_words_are_refused(caller: GrpcCaller) -> None:
    with pytest.raises(ServerRefusal, match="holds 5000 words; at most 1024"):
        caller.infer("ensemble", text_inputs("Once", stop_words=[f"{n}" for n in range(5000)]))
