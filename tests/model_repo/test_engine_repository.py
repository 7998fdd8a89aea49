"""The repository for engines on a real Triton, before a stand-in that speaks exactly the C++ backend's tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from client import DrafthouseClient
from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_generate,
    responses,
    text_inputs,
    whole_text,
    whole_tokens,
    write_message,
)
from tests.end_to_end.deployment import wait_until
from tests.end_to_end.tiny_tokenizers import END_ID
from tests.model_repo.engine_server import OTHER_END_ID, VOCABULARY, EngineServer, serving_engines

pytestmark = pytest.mark.triton
DOORS = ("ensemble", "tensorrt_llm_bls")
METHODS: dict[str, dict[str, Any]] = {
    "medusa": {"method": "medusa", "checkpoint": "heads"},
    "anpd": {"method": "anpd", "draft_length": 4, "ngram": 3},
    "draft_model": {"method": "draft_model", "model": "draft", "draft_length": 4},
}


@pytest.fixture(scope="module", params=METHODS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineServer]:
    """Drafts within the engine, n-grams in the BLS, and a second engine."""
    with serving_engines(tmp_path_factory.mktemp(request.param), METHODS[request.param]) as server:
        yield server


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    """No speculation: requests reach the backend as they are."""
    with serving_engines(tmp_path_factory.mktemp("plain"), {"method": "none"}) as server:
        yield server


@pytest.fixture
def caller(served: EngineServer) -> Iterator[GrpcCaller]:
    with GrpcCaller(served.grpc) as caller:
        yield caller


@pytest.mark.parametrize("door", DOORS)
def test_streamed_text_has_no_seams(served: EngineServer, caller: GrpcCaller, door: str) -> None:
    answers = caller.infer(door, text_inputs("Once:", max_tokens=61, stream=True))
    assert whole_tokens(answers) == served.tokens(61)
    assert whole_text(answers) == served.text(61)
    assert len(answers) > 5


@pytest.mark.parametrize("door", DOORS)
def test_an_unstreamed_answer_is_one_response(served: EngineServer, caller: GrpcCaller, door: str) -> None:
    (answer,) = caller.infer(door, text_inputs("Once:", max_tokens=60))
    assert answer["text_output"].shape == (1,)
    assert whole_text([answer]) == served.text(60)
    echoed = caller.infer(door, text_inputs("Once:", max_tokens=9, exclude_input_in_output=False))
    assert whole_text(echoed) == served.text(9, after="Once:")


@pytest.mark.parametrize("door", DOORS)
def test_rows_of_a_batch_stream_side_by_side(served: EngineServer, caller: GrpcCaller, door: str) -> None:
    lengths = np.array([[40], [7], [23]], np.int32)
    answers = caller.infer(door, text_inputs("a:", "long b:", "c:", max_tokens=lengths, stream=True))
    for row, length in enumerate(lengths.ravel().tolist()):
        assert whole_text(answers, row) == served.text(length)


def test_the_kits_client_reads_it_as_any_other_engine(served: EngineServer) -> None:
    for protocol, address in (("grpc", served.grpc), ("http", served.http)):
        with DrafthouseClient(address, protocol=protocol) as client:  # type: ignore[arg-type]
            stream = client.stream("Once:", max_tokens=50)
            assert "".join(chunk.text for chunk in stream) == served.text(50)


def test_eight_at_once(served: EngineServer) -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        with GrpcCaller(served.grpc) as caller:
            inputs = text_inputs("Once:", max_tokens=20 + number, stream=True)
            texts[number] = whole_text(caller.infer("ensemble", inputs))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: served.text(20 + number) for number in range(8)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("drafted", [0, None])
def test_stop_words_are_text(
    served: EngineServer, caller: GrpcCaller, door: str, stream: bool, drafted: int | None
) -> None:
    """The backend looks for their tokens, which the output does not have: they are joined with others."""
    whole = served.text(90)
    options: dict[str, Any] = {"return_num_output_tokens": True}
    options |= {"num_draft_tokens": 0} if drafted == 0 else {}
    for word in ("aft 世", "ses, ", "; Ç", "\u200d", "the"):
        before = len(served.journal())
        inputs = text_inputs("Once:", max_tokens=6000, stop_words=["#", word], stream=stream, **options)
        answers = caller.infer(door, inputs)
        assert whole_text(answers) == whole[: whole.index(word)]
        assert len(answers) == 1 or stream
        kept = whole_tokens(answers)
        assert kept == served.tokens(90)[: len(kept)]
        assert int(answers[-1]["num_output_tokens"].ravel()[0]) == len(kept)
        wait_until(partial(has_ended, served, before), "the backend has ended")
        assert sum("inputs" in entry for entry in served.journal()[before:]) < 90, "no call after the word"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("outputs", [("cum_log_probs",), ("output_log_probs", "cum_log_probs")])
def test_the_sum_of_log_probs_is_that_of_the_tokens_before_a_stop_word(
    served: EngineServer, caller: GrpcCaller, stream: bool, outputs: tuple[str, ...]
) -> None:
    word = "ses, "
    inputs = text_inputs("Once:", max_tokens=60, stop_words=[word], num_draft_tokens=0, stream=stream)
    wanted = ("text_output", "output_ids", "sequence_length", *outputs)
    message = write_message("tensorrt_llm_bls", {**inputs, "return_log_probs": np.array([[True]])})
    for name in wanted:
        message.outputs.add(name=name)
    answers = list(responses(caller.send(message)))
    assert whole_text(answers) == served.text(60)[: served.text(60).index(word)]
    assert answers[-1]["cum_log_probs"].ravel().tolist() == [-len(whole_tokens(answers))]


def has_ended(served: EngineServer, before: int) -> bool:
    entries = served.journal()[before:]
    return sum("end" in entry for entry in entries) == sum("inputs" in entry for entry in entries)


def test_the_prompt_goes_before_what_a_stop_word_leaves(served: EngineServer, caller: GrpcCaller) -> None:
    inputs = text_inputs("Once:", max_tokens=60, stop_words=["ses, "], exclude_input_in_output=False)
    whole = served.text(60, after="Once:")
    assert whole_text(caller.infer("ensemble", inputs)) == whole[: whole.index("ses, ")]


def test_drafts_save_calls_and_are_counted(served: EngineServer, caller: GrpcCaller) -> None:
    before = len(served.journal())
    inputs = text_inputs("Once:", max_tokens=200, return_perf_metrics=True)
    (answer,) = caller.infer("ensemble", inputs)
    calls = sum(1 for entry in served.journal()[before:] if "inputs" in entry)
    accepted, drafted = (
        int(answer[name].ravel()[0]) for name in ("total_accepted_draft_tokens", "total_draft_tokens")
    )
    if calls == 1:  # the engine drafts by itself, and its figures are passed on
        assert (accepted, drafted) == (7, 14)
        return
    assert accepted == 200 - calls, "a call gives the accepted drafts and one token of its own"
    assert calls < 120
    assert answer["acceptance_rate"].ravel()[0] == pytest.approx(accepted / drafted)


@pytest.mark.parametrize("door", DOORS)
def test_a_client_that_leaves_ends_its_generation(
    served: EngineServer, caller: GrpcCaller, door: str
) -> None:
    before = len(served.journal())
    stream = caller.open(door, text_inputs("Once:", max_tokens=7000, stream=True))
    next(iter(stream))
    stream.cancel()
    sizes = [0]

    def is_quiet() -> bool:
        sizes.append(len(served.journal()))
        return len(sizes) > 40 and len(set(sizes[-40:])) == 1

    wait_until(is_quiet, "no further call of the backend")
    entries = served.journal()[before:]
    calls, ends = ([entry[key] for entry in entries if key in entry] for key in ("inputs", "end"))
    assert 0 < len(calls) == len(ends) < 1000, "7000 tokens take more calls"
    whole = np.ravel(calls[-1]["request_output_len"])[0] == 7000
    assert not whole or ends == ["stopped"], "nor is one call for all of them read to its end"


def test_refusals_reach_the_client(caller: GrpcCaller) -> None:
    with pytest.raises(ServerRefusal, match=r"max_tokens|length"):
        caller.infer("ensemble", text_inputs("Once:", max_tokens=0))
    with pytest.raises(ServerRefusal, match=r"length|limit"):
        caller.infer("ensemble", text_inputs("Once upon a time " * 3000 + ":", max_tokens=8))


def test_the_backend_is_told_what_it_does_not_know(plain: EngineServer) -> None:
    with GrpcCaller(plain.grpc) as caller:
        options = {"random_seed": 5, "min_length": 2, "bad_words": ["draft"], "stop_words": ["verifies"]}
        bias = {"embedding_bias_words": ["t"], "embedding_bias_weights": np.array([[2.5]], np.float32)}
        caller.infer("ensemble", text_inputs("Once:", max_tokens=8, temperature=0.5, **options, **bias))
    sent = next(entry["inputs"] for entry in reversed(plain.journal()) if "inputs" in entry)
    assert sent["end_id"] == [[END_ID]] or sent["end_id"] == [END_ID]
    words = np.array(sent["stop_words_list"])[0]
    ends = words[1][words[1] > 0]
    assert words[0][ends[-1] - 1] == OTHER_END_ID, "the model's second end token is a stop word"
    assert len(ends) == 2
    assert np.array(sent["bad_words_list"])[0, 1].max() >= 1
    biased = np.array(sent["embedding_bias"]).ravel()
    assert biased.shape == (VOCABULARY,) and biased.max() == 2.5 and np.count_nonzero(biased) == 1
    assert np.ravel(sent["seed"])[0] == 5 and np.ravel(sent["min_tokens"])[0] == 2
    assert not {"random_seed", "min_length", "num_draft_tokens", "generation_handle"} & set(sent)


@pytest.mark.parametrize("door", DOORS)
def test_a_temperature_alone_samples(plain: EngineServer, door: str) -> None:
    """The C++ backend would take the likeliest token, since neither top_k nor top_p is there."""
    seeds = set()
    with GrpcCaller(plain.grpc) as caller:
        for _ in range(2):
            caller.infer(door, text_inputs("Once:", "Twice:", max_tokens=4, temperature=0.75))
            for sent in [entry["inputs"] for entry in plain.journal() if "inputs" in entry][-2:]:
                values = [
                    np.ravel(sent[name])[0] for name in ("temperature", "runtime_top_k", "runtime_top_p")
                ]
                assert values == [0.75, 0, 1.0]
                seeds.add(np.ravel(sent["seed"])[0])
        assert len(seeds) > 2, "nor does every request get the backend's own seed"
        caller.infer(door, text_inputs("Once:", max_tokens=4, temperature=0.0, top_p=0.9))
    greedy = next(entry["inputs"] for entry in reversed(plain.journal()) if "inputs" in entry)
    assert np.ravel(greedy["runtime_top_k"]).tolist() == [1]
    assert not {"temperature", "runtime_top_p", "seed"} & set(greedy)


def test_what_an_engine_cannot_draw_is_refused(served: EngineServer, caller: GrpcCaller) -> None:
    inputs = text_inputs("Once:", max_tokens=8, temperature=0.75)
    before = len(served.journal())
    if "decoding_mode" not in (served.repository / "tensorrt_llm" / "config.pbtxt").read_text():
        assert whole_tokens(caller.infer("ensemble", inputs)) == served.tokens(8)
        sent = [entry["inputs"] for entry in served.journal()[before:] if "inputs" in entry]
        assert {np.ravel(call["runtime_top_p"])[0] for call in sent} == {1.0}, "every call samples"
        return
    with pytest.raises(ServerRefusal, match=r"decoding_mode medusa cannot draw with temperature 0\.75"):
        caller.infer("ensemble", inputs)
    with pytest.raises(ServerRefusal, match=r"repetition_penalty is 1\.5; an engine of decoding_mode medusa"):
        caller.infer("ensemble", text_inputs("Once:", max_tokens=8, repetition_penalty=1.5))
    assert whole_tokens(
        caller.infer("ensemble", text_inputs("Once:", max_tokens=8, top_k=40))
    ) == served.tokens(8)


def test_an_end_token_of_the_request_stands_alone(plain: EngineServer) -> None:
    with GrpcCaller(plain.grpc) as caller:
        caller.infer("ensemble", text_inputs("Once:", max_tokens=4, end_id=7))
    sent = next(entry["inputs"] for entry in reversed(plain.journal()) if "inputs" in entry)
    assert np.ravel(sent["end_id"]).tolist() == [7]
    assert np.array(sent["stop_words_list"])[0, 1].max() == -1


def test_nvidias_own_doors_stay_open(plain: EngineServer) -> None:
    """`preprocessing`, the backend and `postprocessing` called one by one, as NVIDIA's BLS does."""
    with GrpcCaller(plain.grpc) as caller:
        query = {"QUERY": np.array([[b"Once:"]], object), "REQUEST_OUTPUT_LEN": np.array([[6]], np.int32)}
        (prepared,) = caller.infer("preprocessing", query)
        inputs = {
            "input_ids": prepared["INPUT_ID"],
            "input_lengths": prepared["REQUEST_INPUT_LEN"],
            "request_output_len": prepared["REQUEST_OUTPUT_LEN"],
            "end_id": prepared["OUT_END_ID"],
        }
        (generated,) = caller.infer("tensorrt_llm", inputs)
        assert prepared["OUT_END_ID"].tolist() == [[END_ID]]
        tokens = {"TOKENS_BATCH": generated["output_ids"], "SEQUENCE_LENGTH": generated["sequence_length"]}
        (answer,) = caller.infer("postprocessing", tokens)
        assert answer["OUTPUT"].ravel()[0].decode() == plain.text(6)
    (fields,) = http_generate(plain.http, {"text_input": "Once:", "max_tokens": 6})
    assert fields["text_output"] == plain.text(6)
