"""What a request says beside its prompt, through every door: salts of the KV cache, misspelt names, who answers."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import urlopen

import pytest

from build.identity import identity
from client import DrafthouseClient
from tests.end_to_end.calls import GrpcCaller, ServerRefusal, http_generate, text_inputs, token_inputs
from tests.end_to_end.deployment import Deployment

pytestmark = pytest.mark.triton
DOORS = ("ensemble", "tensorrt_llm_bls")
LONG = "for number in range(limit): print(number) # " * 8


def reused(answers: list[Any]) -> int:
    return int(answers[-1]["kv_cache_reused_blocks"].ravel()[0])


@pytest.mark.parametrize("door", DOORS)
def test_requests_share_cache_with_those_of_their_salt_alone(grpc_caller: GrpcCaller, door: str) -> None:
    def ask(salt: str | None) -> int:
        salted = {} if salt is None else {"cache_salt": [salt]}
        inputs = text_inputs(f"{door}: {LONG}", max_tokens=2, return_perf_metrics=True, **salted)
        return reused(grpc_caller.infer(door, inputs))

    assert [ask(None), ask("one"), ask("two")] == [0, 0, 0]
    found = ask("one")
    assert found > 2
    assert ask(None) == ask("two") == found
    assert ask("three") == 0


def test_salt_of_token_level_requests_and_over_http(served: Deployment, grpc_caller: GrpcCaller) -> None:
    ids = list(range(3, 200))

    def ask(salt: str) -> int:
        inputs = token_inputs(ids, max_tokens=2, return_perf_metrics=True, cache_salt=[salt])
        return reused(grpc_caller.infer("tensorrt_llm", inputs))

    assert ask("a") == ask("b") == 0
    assert ask("a") > 2
    fields = {"text_input": f"http: {LONG}", "max_tokens": 2, "return_perf_metrics": True}
    first, other, again = (
        http_generate(served.http, {**fields, "cache_salt": salt})[0]["kv_cache_reused_blocks"]
        for salt in ("x", "y", "x")
    )
    assert first == other == 0 < again


def test_calls_of_a_salted_generation_find_their_own_rows(
    speculating_deployment: Deployment,
) -> None:
    with GrpcCaller(speculating_deployment.grpc) as caller:
        for model in ("tensorrt_llm_bls", "bls_anpd"):
            inputs = text_inputs("one two one two", max_tokens=60, return_perf_metrics=True, cache_salt=["s"])
            assert reused(caller.infer(model, inputs)) > 10


@pytest.mark.parametrize("door", [*DOORS, "tensorrt_llm"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_misspelt_field_is_refused_by_name(served: Deployment, door: str, stream: bool) -> None:
    text, most = {"text_input": "Hello"}, {"max_tokens": 3}
    if door == "tensorrt_llm":
        text, most = {"input_ids": [5, 6], "input_lengths": 2}, {"request_output_len": 3}  # type: ignore[dict-item]
    with pytest.raises(ServerRefusal, match="unknown parameter 'temprature'; did you mean temperature"):
        http_generate(served.http, {**text, **most, "temprature": 0.5}, model=door, stream=stream)
    with pytest.raises(ServerRefusal, match="unknown parameter 'min_p'"):
        nested = {"parameters": {"min_p": 0.5}}
        http_generate(served.http, {**text, **most, **nested}, model=door, stream=stream)
    (answer, *_) = http_generate(served.http, {**text, **most, "id": "7"}, model=door, stream=stream)
    assert answer["id"] == "7"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_says_which_deployment_it_is(served: Deployment, protocol: Any) -> None:
    expected = identity(served.spec, served.engine)
    assert expected.deployment == "tiny" and expected.weights
    address = served.grpc if protocol == "grpc" else served.http
    with DrafthouseClient(address, protocol=protocol) as client:
        for model in DOORS:
            said = client.describe(model)
            assert "cache_salt" in said.inputs
            found = {
                name: said.parameters[f"drafthouse_{name}"] for name in ("deployment", "spec", "weights")
            }
            assert found == {"deployment": "tiny", "spec": expected.spec, "weights": expected.weights}
            assert said.parameters["drafthouse_prefix_cache"] == "true"


def test_anybody_can_ask_with_curl(served: Deployment) -> None:
    with urlopen(f"http://{served.http}/v2/models/ensemble/config", timeout=60) as answer:
        config = json.load(answer)
    assert config["parameters"]["drafthouse_deployment"] == {"string_value": "tiny"}
