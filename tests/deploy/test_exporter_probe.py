"""What a probe tells from the streams of the different TensorRT-LLM repositories."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.exporter.fetch import Unanswered
from deploy.exporter.probe import Answer, Probe, Unmeasured
from tests.deploy.answering import Answering

INFLIGHT = ("text_input", "max_tokens", "stream", "return_perf_metrics", "return_num_output_tokens")
LLMAPI = (
    *("text_input", "streaming", "sampling_param_max_tokens", "sampling_param_return_perf_metrics"),
    "return_finish_reason",
)
KIT_BLS = (*INFLIGHT, "num_draft_tokens")
ZEROS = {"acceptance_rate": 0.0, "total_draft_tokens": 0, "total_accepted_draft_tokens": 0}


def probe(server: Answering, model: str = "", max_tokens: int = 12, draft_length: int = 0) -> Probe:
    return Probe(server.url, model, "a b c", max_tokens, draft_length)


def figures(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in ("tokens", "steps", "chunks", "drafted", "accepted")}


def llmapi(texts: int, **last: str) -> list[dict[str, Any]]:
    """Chunks of NVIDIA's llmapi model: every figure is text, and there are no token ids (docs/llmapi.md)."""
    told = {"acceptance_rate": "0.0", "total_accepted_draft_tokens": "0", "total_draft_tokens": "0"}
    chunks: list[dict[str, Any]] = [{"text_output": "a" * i, "finish_reason": "None"} for i in range(texts)]
    chunks[-1] |= {**told, "finish_reason": "length", **last}
    return chunks


def ids(*sizes: int) -> list[dict[str, Any]]:
    """Chunks of an ensemble that answers with token ids; Triton writes a list of one as its element."""
    return [{"text_output": "x", "output_ids": list(range(n)) if n > 1 else 5, **ZEROS} for n in sizes]


def test_token_ids_show_what_every_step_emitted(server: Answering) -> None:
    server.model("ensemble", INFLIGHT, ids(1, 4, 2, 1, 4))
    assert figures(probe(server).send()) == {
        **{"tokens": 12, "steps": 5, "chunks": (1, 4, 2, 1, 4)},
        **{"drafted": None, "accepted": None},
    }


def test_totals_of_the_request_are_taken_where_they_are_filled_in(server: Answering) -> None:
    events = ids(1, 4, 2, 1, 4)
    events[-1] |= {"total_draft_tokens": 12, "total_accepted_draft_tokens": 7, "acceptance_rate": 0.58}
    server.model("ensemble", INFLIGHT, events)
    answer = probe(server).send()
    assert (answer.steps, answer.drafted, answer.accepted) == (5, 12, 7)
    assert answer.chunks == (1, 4, 2, 1, 4)


def test_totals_win_over_chunks_that_hold_several_steps(server: Answering) -> None:
    events = ids(1, 8, 3)
    events[-1] |= {"total_draft_tokens": 12, "total_accepted_draft_tokens": 7}
    server.model("ensemble", INFLIGHT, events)
    answer = probe(server).send()
    assert (answer.tokens, answer.steps, answer.chunks) == (12, 5, ())


def test_an_ensemble_without_token_ids_tells_the_number_of_tokens(server: Answering) -> None:
    events = [{"text_output": "x", "num_output_tokens": n, **ZEROS} for n in (1, 5, 12)]
    server.model("ensemble", INFLIGHT, events)
    answer = probe(server).send()
    assert (answer.tokens, answer.steps, answer.chunks, answer.drafted) == (12, 3, (), None)


def test_llmapi_answers_with_text_and_zeros_that_mean_unknown(server: Answering) -> None:
    server.model("tensorrt_llm", LLMAPI, llmapi(5))
    answer = probe(server).send()
    assert (answer.tokens, answer.steps, answer.drafted, answer.accepted) == (12, 5, None, None)


def test_llmapi_after_pr_17082(server: Answering) -> None:
    server.model("tensorrt_llm", LLMAPI, llmapi(5, total_draft_tokens="12", total_accepted_draft_tokens="7"))
    answer = probe(server).send()
    assert (answer.tokens, answer.steps, answer.drafted, answer.accepted) == (12, 5, 12, 7)


@pytest.mark.parametrize(
    ("model", "inputs", "sent"),
    [
        ("ensemble", INFLIGHT, {"max_tokens": 12, "stream": True, "return_perf_metrics": True}),
        ("tensorrt_llm", LLMAPI, {"sampling_param_max_tokens": 12, "streaming": True}),
        ("tensorrt_llm_bls", KIT_BLS, {"max_tokens": 12, "num_draft_tokens": 3}),
    ],
)
def test_only_declared_inputs_are_sent(
    server: Answering, model: str, inputs: tuple[str, ...], sent: dict[str, Any]
) -> None:
    server.model(model, inputs, ids(1, 2, 1))
    probe(server, model if model.endswith("bls") else "", draft_length=3).send()
    path, fields = server.asked[-1]
    assert path == f"/v2/models/{model}/generate_stream"
    assert set(fields) == set(inputs)
    assert fields.items() >= {"text_input": "a b c", **sent}.items()


@pytest.mark.parametrize(
    ("events", "draft_length", "why"),
    [
        (llmapi(5, finish_reason="stop"), 0, "how many"),
        (ids(1, 9, 2), 3, "not one decode step"),
        ([{"text_output": "", "num_output_tokens": 2}] * 3, 0, "not one decode step"),
        ([], 0, "no chunk"),
        ([{"text_output": "", "output_ids": [], "num_output_tokens": 0}], 3, "no token at all"),
    ],
)
def test_an_answer_that_does_not_tell(
    server: Answering, events: list[dict[str, Any]], draft_length: int, why: str
) -> None:
    server.model("tensorrt_llm", LLMAPI, events)
    with pytest.raises(Unmeasured, match=why):
        probe(server, draft_length=draft_length).send()


def test_a_refusal_is_told(server: Answering) -> None:
    error = "Streaming is only supported in decoupled mode."
    server.model("tensorrt_llm", LLMAPI, [{"error": error}])
    with pytest.raises(Unanswered, match=error):
        probe(server).send()
    server.pages.clear()
    with pytest.raises(Unanswered, match="404"):
        probe(server).send()
