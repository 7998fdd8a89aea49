"""Drafts that the BLS sends to an engine: by their logits where the spec says so, and never cut short at its limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.calls import GrpcCaller, ServerRefusal, text_inputs, whole_tokens
from tests.model_repo.engine_server import VOCABULARY, EngineServer, serving_engines

pytestmark = pytest.mark.triton
DRAFT: dict[str, Any] = {"method": "draft_model", "model": "draft", "draft_length": 4, "adaptive": False}
ANPD: dict[str, Any] = {"method": "anpd", "draft_length": 6, "ngram": 3, "adaptive": False}


@pytest.fixture(scope="module")
def by_logits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    folder = tmp_path_factory.mktemp("logits")
    with serving_engines(folder, {**DRAFT, "use_draft_logits": True}) as server:
        yield server


def calls(server: EngineServer, model: str, before: int = 0) -> list[Mapping[str, Any]]:
    return [entry["inputs"] for entry in server.journal(model)[before:] if "inputs" in entry]


def ask(server: EngineServer, tokens: int, **options: Any) -> tuple[list[int], list[Any], list[Any]]:
    """Tokens of an answer, and the calls of draft and target that it took."""
    before = len(server.journal()), len(server.journal("tensorrt_llm_draft"))
    with GrpcCaller(server.grpc) as caller:
        inputs = text_inputs("Once:", max_tokens=tokens, **options)
        given = whole_tokens(caller.infer("tensorrt_llm_bls", inputs))
    return given, calls(server, "tensorrt_llm_draft", before[1]), calls(server, "tensorrt_llm", before[0])


@pytest.mark.parametrize("options", [{}, {"use_draft_logits": True}, {"temperature": 0.5, "seed": 3}])
def test_draft_logits_go_to_the_target(by_logits: EngineServer, options: dict[str, Any]) -> None:
    given, drafts, targets = ask(by_logits, 60, **options)
    assert given == by_logits.tokens(60)
    assert drafts and all(np.ravel(call["return_generation_logits"]).tolist() == [True] for call in drafts)
    assert not any("end_id" in call for call in drafts), "a draft that stops at an end token hides its chance"
    sent = [call for call in targets if "draft_input_ids" in call]
    assert sent
    for call in sent:
        ids, logits = np.array(call["draft_input_ids"]), np.array(call["draft_logits"])
        assert logits.shape == (1, ids.shape[1], VOCABULARY)
        assert logits[0].argmax(axis=1).tolist() == ids[0].tolist(), "each row is of its token"
        spread = np.ptp(logits[0], axis=1)
        assert spread == pytest.approx(4.0 / options.get("temperature", 1.0)), "at the request's temperature"


def test_a_draft_is_drawn_as_the_request_is(by_logits: EngineServer) -> None:
    _, greedy, _ = ask(by_logits, 12)
    assert all(np.ravel(call["runtime_top_k"]).tolist() == [1] for call in greedy)
    _, sampled, targets = ask(by_logits, 12, temperature=0.5, top_k=7, seed=3)
    for call in sampled:
        drawn = [np.ravel(call[name])[0] for name in ("temperature", "runtime_top_k", "runtime_top_p")]
        assert drawn == [0.5, 0, 1.0], "top_k of the draft would not be in its logits"
    seeds = [np.ravel(call["seed"])[0] for call in (*sampled, *targets)]
    assert len(set(seeds)) == len(seeds), "a draft and its verification must not share random numbers"


def test_a_request_may_do_without(by_logits: EngineServer) -> None:
    given, drafts, targets = ask(by_logits, 30, use_draft_logits=False)
    assert given == by_logits.tokens(30)
    assert drafts and not any("return_generation_logits" in call for call in drafts)
    assert not any("draft_logits" in call for call in targets)


def test_fast_logits_are_passed_on_as_they_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    launch = {"launch": {"mode": "orchestrator"}}
    folder = tmp_path_factory.mktemp("fast")
    with serving_engines(folder, {**DRAFT, "use_draft_logits": True}, engine=launch) as server:
        given, drafts, targets = ask(server, 40, temperature=0.5)
        assert given == server.tokens(40)
        assert {np.ravel(call["temperature"])[0] for call in drafts} == {1.0}, "nobody can divide them"
        where = [call["draft_logits"] for call in targets if "draft_logits" in call]
        assert where and all(tensor == [[[0.0, 1.0, 2.0, 3.0, 4.0]]] for tensor in where)


def test_engines_without_logits_refuse_them_with_a_reason(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        serving_engines(tmp_path_factory.mktemp("without"), DRAFT) as server,
        GrpcCaller(server.grpc) as caller,
        pytest.raises(
            ServerRefusal, match=r"use_draft_logits is not supported.*speculation\.use_draft_logits: true"
        ),
    ):
        caller.infer("tensorrt_llm_bls", text_inputs("Once:", use_draft_logits=True))


@pytest.fixture(scope="module", params=[None, 90])
def short(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EngineServer, int]]:
    """Engines for 90 tokens, built from the spec and with no more than that; and how many each can take."""
    engine = {"max_input_length": 60, "max_sequence_length": 90, "max_num_tokens": 90}
    folder = tmp_path_factory.mktemp("short")
    with serving_engines(folder, ANPD, engine=engine, room=request.param) as server:
        yield server, (90 - ANPD["draft_length"] if request.param else 90)


def test_an_answer_reaches_the_limit_of_the_engine(short: tuple[EngineServer, int]) -> None:
    """Near it the backend shortens drafts and answers, which must not look like the end of the text."""
    server, longest = short
    prompt = len(server.tokenizer.encode("Once:", add_special_tokens=False).ids)
    for missing in range(12):
        tokens = longest - prompt - missing
        given, _, targets = ask(server, tokens)
        assert given == server.tokens(tokens)
        assert any("draft_input_ids" in call for call in targets)


def test_beyond_it_a_request_is_refused_at_once(short: tuple[EngineServer, int]) -> None:
    server, longest = short
    prompt = len(server.tokenizer.encode("Once:", add_special_tokens=False).ids)
    with pytest.raises(ServerRefusal, match=f"more than the limit of {longest}"):
        ask(server, longest - prompt + 1)
