"""What a caller gets from a real Triton server, over both protocols, from both clients."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from client import ChatTemplate, KvCacheUse, errors
from tests.client.conftest import Connect
from tests.client.triton_server import Triton

pytestmark = pytest.mark.triton

PROMPT = "the quick 🦊 jumps über 猫 and a d\u0323\u0307og"


def test_ready_server_is_ready(client: Any) -> None:
    assert client.is_ready()


def test_model_that_is_not_there_is_not_ready(connect: Connect, triton: Triton) -> None:
    assert not connect(triton, model="absent").is_ready()


def test_address_where_nothing_listens_is_not_ready(connect: Connect) -> None:
    assert not connect("127.0.0.1:9").is_ready()


def test_result_of_a_generation(client: Any) -> None:
    result = client.generate(PROMPT, max_tokens=5, request_id="five words")
    assert result.text == "the quick 🦊 jumps über "
    assert result.tokens == (3, 5, 1, 5, 4)
    assert result.finish_reason == "length"
    assert (result.num_input_tokens, result.num_output_tokens) == (9, 5)
    assert result.request_id == "five words"
    assert result.log_probs is None


def test_figures_of_a_generation(client: Any) -> None:
    result = client.generate("a b c d e f", max_tokens=6)
    assert (result.acceptance.draft_tokens, result.acceptance.accepted_tokens) == (6, 3)
    assert result.acceptance.rate == 0.5
    assert result.acceptance.length == 2.0
    timings = result.timings
    assert (timings.arrival_ns, timings.first_scheduled_ns, timings.first_token_ns) == (1000, 2000, 3000)
    assert timings.last_token_ns == 2**40 + 1
    assert timings.queue_time == pytest.approx(1e-6)
    assert timings.sent_ns < timings.first_chunk_ns <= timings.last_chunk_ns
    assert 0 < timings.time_to_first_chunk <= timings.latency


def test_chunks_join_to_the_result(client: Any) -> None:
    stream = client.stream(PROMPT, max_tokens=100)
    chunks = list(stream)
    assert [chunk.text for chunk in chunks[:2]] == ["the quick ", "🦊 jumps "]
    assert "".join(chunk.text for chunk in chunks) == stream.result.text == f"{PROMPT} "
    assert sum((chunk.tokens for chunk in chunks), ()) == stream.result.tokens
    assert [chunk.received_ns for chunk in chunks] == sorted(chunk.received_ns for chunk in chunks)
    assert stream.result.timings.first_chunk_ns == chunks[0].received_ns
    assert stream.result.timings.last_chunk_ns == chunks[-1].received_ns
    assert stream.result.finish_reason == "stop"


def test_streamed_and_whole_text_are_the_same(client: Any) -> None:
    assert client.generate(PROMPT).text == "".join(chunk.text for chunk in client.stream(PROMPT))


def test_end_token_ends_with_stop_and_is_not_in_the_output(client: Any) -> None:
    result = client.generate("one two three <end> four")
    assert (result.text, result.finish_reason) == ("one two three ", "stop")


def test_stop_string_ends_with_stop_and_is_not_in_the_output(client: Any) -> None:
    result = client.generate("one two three four", stop=["three", "seven"])
    assert (result.text, result.finish_reason) == ("one two ", "stop")


def test_generation_of_nothing(client: Any) -> None:
    result = client.generate("nothing")
    assert (result.text, result.num_output_tokens, result.finish_reason) == ("", 0, "stop") or (
        result.text == "" and result.num_output_tokens is None
    )
    assert result.timings.first_chunk_ns is None
    assert result.timings.latency is None


def test_log_probabilities(client: Any) -> None:
    stream = client.stream("a bb cccc", return_log_probs=True)
    assert [chunk.log_probs for chunk in stream] == [(-0.125, -0.25), (-0.5,)]
    assert stream.result.log_probs == (-0.125, -0.25, -0.5)


def sent(client: Any, **options: Any) -> dict[str, Any]:
    """The inputs that reached the model."""
    inputs: dict[str, Any] = json.loads(client.generate("inputs", **options).text)
    return {name: value for name, value in inputs.items() if name not in ("text_input", "stream")}


ASKED_FOR_ALWAYS = {
    "exclude_input_in_output": [True],
    "return_perf_metrics": [True],
    "return_num_input_tokens": [True],
    "return_num_output_tokens": [True],
}


def test_defaults_reach_the_model_as_greedy(client: Any) -> None:
    assert sent(client) == {"max_tokens": [64], "top_k": [1], **ASKED_FOR_ALWAYS}


def test_all_options_reach_the_model(client: Any) -> None:
    options = sent(
        client,
        max_tokens=7,
        temperature=0.5,
        top_k=40,
        top_p=0.25,
        seed=2**64 - 1,
        stop=("\n\n", "Ende ✓"),
        min_tokens=3,
        num_draft_tokens=0,
        cache_salt="Gruß",
        return_log_probs=True,
    )
    assert options == {
        "max_tokens": [7],
        "temperature": [0.5],
        "top_k": [40],
        "top_p": [0.25],
        "seed": [2**64 - 1],
        "stop_words": ["\n\n", "Ende ✓"],
        "min_tokens": [3],
        "num_draft_tokens": [0],
        "cache_salt": ["Gruß"],
        "return_log_probs": [True],
        **ASKED_FOR_ALWAYS,
    }


def test_numbers_of_numpy_reach_the_model(client: Any) -> None:
    options = sent(client, max_tokens=np.int32(9), temperature=np.float32(0.5), seed=np.uint64(7))
    assert (options["max_tokens"], options["temperature"], options["seed"]) == ([9], [0.5], [7])
    assert client.generate_tokens(np.array([1, 2]), end_id=np.int64(2)).tokens == (1, 2)


def test_sampling_says_what_it_samples_from(client: Any) -> None:
    options = sent(client, temperature=0.75)
    assert (options["temperature"], options["top_k"], options["top_p"]) == ([0.75], [0], [1.0])


def test_none_means_the_default(client: Any) -> None:
    assert sent(client, top_k=None, top_p=None, seed=None, min_tokens=None, num_draft_tokens=None) == sent(
        client
    )


def test_large_prompt_arrives_whole(client: Any) -> None:
    prompt = "word🙂 " * 50_000
    assert client.generate(prompt, max_tokens=2).num_input_tokens == 50_000


def test_blocks_found_in_the_cache_are_told(client: Any) -> None:
    assert client.generate("a b c").kv_cache == KvCacheUse(reused_blocks=3, total_blocks=5)


def test_what_a_server_says_about_a_model(client: Any, triton: Triton) -> None:
    ensemble, words = client.describe(), client.describe("words")
    assert {"text_input", "cache_salt"} <= ensemble.inputs and not ensemble.parameters
    assert words.parameters == {"journal": str(triton.journal)}
    with pytest.raises(errors.InvalidRequest, match="did you mean 'words'"):
        client.describe("word")


def test_older_server_leaves_fields_none(connect: Connect, triton: Triton) -> None:
    client = connect(triton, model="legacy")
    stream = client.stream("a b c")
    assert [(chunk.text, chunk.tokens) for chunk in stream] == [("a b ", None), ("c ", None)]
    result = stream.result
    assert result.text == "a b c "
    assert (
        result.tokens
        is result.acceptance
        is result.finish_reason
        is result.log_probs
        is result.kv_cache
        is None
    )
    assert result.num_input_tokens is result.num_output_tokens is result.timings.arrival_ns is None


def test_option_that_the_model_does_not_know_is_refused_by_name(connect: Connect, triton: Triton) -> None:
    with pytest.raises(errors.InvalidRequest, match="'legacy' has no input 'num_draft_tokens'") as caught:
        connect(triton, model="legacy").generate("a", num_draft_tokens=3)
    assert caught.value.field == "num_draft_tokens"


def test_sampling_a_model_without_temperature_is_refused(connect: Connect, triton: Triton) -> None:
    with pytest.raises(errors.InvalidRequest, match="temperature"):
        connect(triton, model="legacy").generate("a", temperature=0.5)


def test_token_level_generation(client: Any) -> None:
    result = client.generate_tokens([1, 2, 3, 4, 5], max_tokens=4, end_id=2)
    assert result.tokens == (1, 2, 3, 4)
    assert (result.text, result.finish_reason, result.num_output_tokens) == ("", "length", 4)


def test_token_level_stream(client: Any) -> None:
    stream = client.stream_tokens([1, 2, 3])
    assert [chunk.tokens for chunk in stream] == [(1, 2), (3,)]
    assert stream.result.finish_reason == "stop"


def test_token_level_generation_of_one_token(client: Any) -> None:
    assert client.generate_tokens([7], max_tokens=1).tokens == (7,)


def test_chat_sends_the_rendered_messages(client: Any) -> None:
    template = ChatTemplate("{{ messages[0].content }} {% if add_generation_prompt %}now{% endif %}")
    messages = [{"role": "user", "content": "say it"}]
    assert client.chat(messages, template=template).text == "say it now "
    assert [chunk.text for chunk in client.stream_chat(messages, template=template)] == ["say it ", "now "]


def test_stream_has_no_result_before_its_end(client: Any) -> None:
    stream = client.stream("a b c d")
    with pytest.raises(RuntimeError, match="iterate it to its end"):
        _ = stream.result
    chunks = iter(stream)
    next(chunks)
    with pytest.raises(RuntimeError, match="iterate it to its end"):
        _ = stream.result
    assert len(list(chunks)) == 1
    assert stream.result.finish_reason == "stop"


def test_stream_is_iterated_once(client: Any) -> None:
    stream = client.stream("a b")
    list(stream)
    with pytest.raises(RuntimeError, match="only once"):
        list(stream)


def test_figures_are_finite(client: Any) -> None:
    result = client.generate("a b c")
    assert math.isfinite(result.acceptance.length)
