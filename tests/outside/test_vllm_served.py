"""vLLM itself behind a real Triton: the contract, streaming, ends, figures, and clients that know nothing of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from pytest import MonkeyPatch

from build.identity import identity
from build.vllm.checks import asked_of_vllm
from build.vllm.repository import assemble_vllm_repository
from client import DrafthouseClient
from deploy.triton import TritonServer
from deployments.spec import DeploymentSpec, load_spec
from planner.bench.peers.environments import Environment
from planner.bench.peers.processes import run
from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_generate,
    responses,
    text_inputs,
    whole_text,
    whole_tokens,
)
from tests.end_to_end.deployment import Deployment, wait_until
from tests.outside.test_genai_perf import OUTPUT_TOKENS, check_figures, profile
from tests.outside.test_nvidia_clients import MAX_TOKENS, always_sent, ask, text_of
from tests.ports import free_ports

pytestmark = [pytest.mark.outside, pytest.mark.model]
ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "speculators" / "weights" / "smollm2-135m"
DOORS = ("ensemble", "tensorrt_llm_bls")
PROMPT = "one two three one two three one two three one two"
START_SECONDS = 300.0


def deployment(smollm2: Path, folder: Path, speculation: dict[str, Any], **engine: Any) -> DeploymentSpec:
    http, grpc, metrics = free_ports(3)
    return DeploymentSpec.model_validate(
        {
            "name": "outside-vllm",
            "target": {"model": smollm2},
            "engine": {
                "kind": "vllm",
                "dtype": "float32",
                "max_batch_size": 8,
                "max_sequence_length": 512,
                "kv_cache_gib": 0.5,
                "enforce_eager": True,
                **engine,
            },
            "speculation": speculation,
            "serving": {
                "repository": folder / "repository",
                "http_port": http,
                "grpc_port": grpc,
                "metrics_port": metrics,
            },
        }
    )


@contextmanager
def serving(spec: DeploymentSpec, vllm_environment: Environment, folder: Path) -> Iterator[Deployment]:
    repository, log = assemble_vllm_repository(spec), folder / "triton.log"
    ports = {name: getattr(spec.serving, name) for name in ("http_port", "grpc_port", "metrics_port")}
    with MonkeyPatch.context() as patched:
        patched.setenv("VLLM_CPU_OMP_THREADS_BIND", "0,1")
        with TritonServer(repository, **ports, log=log, environment=vllm_environment.directory) as server:
            server.wait_until_ready(START_SECONDS)
            yield Deployment(server, spec, spec.target.model, folder, repository, log)


@pytest.fixture(scope="module")
def served(
    smollm2: Path, vllm_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """The kit's EAGLE-3 weights."""
    folder = tmp_path_factory.mktemp("served")
    speculation = {"method": "eagle3", "checkpoint": WEIGHTS / "eagle3", "draft_length": 3}
    with serving(deployment(smollm2, folder, speculation), vllm_environment, folder) as running:
        yield running


@pytest.fixture
def caller(served: Deployment) -> Iterator[GrpcCaller]:
    with GrpcCaller(served.grpc) as caller:
        yield caller


@pytest.mark.parametrize("door", DOORS)
def test_streamed_text_joins_to_the_whole_answer(caller: GrpcCaller, door: str) -> None:
    prompt = "Écris « naïve » et 世界 : "
    whole = caller.infer(door, text_inputs(prompt, max_tokens=32))
    streamed = caller.infer(door, text_inputs(prompt, max_tokens=32, stream=True))
    assert len(whole) == 1 and whole[0]["text_output"].shape == (1,)
    assert len(streamed) > 3
    assert whole_text(streamed) == whole_text(whole) != ""
    assert whole_tokens(streamed) == whole_tokens(whole)


def test_speculation_is_counted_for_the_request_and_for_the_server(
    served: Deployment, caller: GrpcCaller
) -> None:
    before = served.metrics()
    (answer,) = caller.infer("ensemble", text_inputs(PROMPT, max_tokens=40, return_perf_metrics=True))
    figures = {name: answer[name].ravel()[0] for name in answer}
    drafted, accepted = int(figures["total_draft_tokens"]), int(figures["total_accepted_draft_tokens"])
    assert figures["acceptance_source"] == b"vllm"
    assert 0 < accepted < drafted
    assert figures["acceptance_rate"] == pytest.approx(accepted / drafted)
    times = [
        int(figures[f"{name}_ns"])
        for name in ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
    ]
    assert times == sorted(times) and times[0] > 10**18

    def published() -> bool:
        grown = {name: value - before.get(name, 0) for name, value in served.metrics().items()}
        return (
            grown["trtllm_spec_decode_num_draft_tokens_total"] == drafted
            and grown["trtllm_spec_decode_num_accepted_tokens_total"] == accepted
            and grown["drafthouse_spec_tokens_total/vllm"] == 40
            and sum(grown[f"trtllm_spec_decode_accepted_tokens_total/{depth}"] for depth in (1, 2, 3))
            == accepted
        )

    wait_until(published, "the server's counters have grown by what the request was told")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_what_stands_before_a_stop_word(caller: GrpcCaller, door: str, stream: bool) -> None:
    """Words that begin and end within tokens, as well as whole ones; drafted tokens behind them are not seen."""
    whole = whole_text(caller.infer(door, text_inputs(PROMPT, max_tokens=40)))
    for word in (whole[7:11], whole[15:24], whole.split()[5], whole[:3]):
        inputs = text_inputs(PROMPT, max_tokens=40, stop_words=["nowhere", word], stream=stream)
        answers = caller.infer(door, inputs)
        assert whole_text(answers) == whole[: whole.index(word)]
    inputs = text_inputs(PROMPT, max_tokens=40, stop_words=["nowhere"], stream=stream)
    assert whole_text(caller.infer(door, inputs)) == whole


def test_of_an_answer_that_a_stop_word_ends_no_acceptance_is_told(
    served: Deployment, caller: GrpcCaller
) -> None:
    whole = whole_text(caller.infer("ensemble", text_inputs(PROMPT, max_tokens=40)))
    sources = {}
    for word in ("nowhere", whole.split()[5]):
        inputs = text_inputs(PROMPT, max_tokens=40, stop_words=[word], return_perf_metrics=True)
        (answer,) = caller.infer("ensemble", inputs)
        sources[word] = answer["acceptance_source"].ravel()[0], int(answer["total_draft_tokens"].ravel()[0])
    assert sources.pop("nowhere") > (b"vllm", 0)
    assert list(sources.values()) == [(b"none", 0)]
    wait_until(lambda: served.running() == 0, "what a stop word has ended runs no more")


def test_a_salt_keeps_the_cache_of_prompts_apart(caller: GrpcCaller) -> None:
    prompt = "one two three four " * 110  # whole blocks of 128; the last one is read again for the drafter

    def reused(salt: str) -> int:
        inputs = text_inputs(prompt, max_tokens=2, cache_salt=[salt], return_perf_metrics=True)
        (answer,) = caller.infer("ensemble", inputs)
        return int(answer["kv_cache_reused_blocks"].ravel()[0])

    assert [reused(salt) > 0 for salt in ("a", "a", "b", "b", "a")] == [False, True, False, True, True]


def test_a_parameter_that_is_no_input_is_refused(served: Deployment) -> None:
    with pytest.raises(ServerRefusal, match="'temprature'; did you mean temperature"):
        http_generate(served.http, {"text_input": PROMPT, "max_tokens": 5, "temprature": 0.5})


def test_a_request_is_stopped_by_an_id_that_nobody_guesses(served: Deployment, caller: GrpcCaller) -> None:
    def inputs(**more: Any) -> dict[str, Any]:
        return {"text_input": np.array([PROMPT.encode()], np.object_), **more}

    most, on = np.array([450], np.int32), np.array([True])
    for own_id in ("1", uuid4().hex):
        stream = caller.open("tensorrt_llm", inputs(sampling_param_max_tokens=most, streaming=on), own_id)
        iterator = responses(stream)
        next(iterator)
        with GrpcCaller(served.grpc) as other:
            if own_id == "1":
                with pytest.raises(ServerRefusal, match="others could guess the id '1'"):
                    other.infer("tensorrt_llm", inputs(stop=on), own_id)
                stream.cancel()
            else:
                other.infer("tensorrt_llm", inputs(stop=on), own_id)
                assert sum(answer["output_ids"].size for answer in iterator) < 449
    wait_until(lambda: served.running() == 0, "neither runs any more")


@pytest.mark.parametrize("door", DOORS)
def test_the_server_says_which_deployment_it_is(served: Deployment, door: str) -> None:
    expected = identity(served.spec).parameters(prefix_cache=True)
    with DrafthouseClient(served.grpc) as client:
        said = client.describe(door)
    assert "cache_salt" in said.inputs
    assert {name: said.parameters[name] for name in expected} == expected


def test_seeds_repeat_and_differ(caller: GrpcCaller) -> None:
    def text(seed: int) -> str:
        inputs = text_inputs("Once upon a time", max_tokens=24, temperature=1.0, seed=seed)
        return whole_text(caller.infer("ensemble", inputs))

    assert text(5) == text(5) != text(6)


def test_sampling_goes_by_the_targets_distribution(caller: GrpcCaller) -> None:
    """At a low temperature almost nothing but the greedy answer is left, with drafts and beside greedy requests."""
    greedy = whole_text(caller.infer("ensemble", text_inputs(PROMPT, max_tokens=16)))
    prompts, temperatures = [PROMPT] * 4, np.array([[0.01], [0.0], [0.01], [0.0]], np.float32)
    inputs = text_inputs(*prompts, max_tokens=16, temperature=temperatures, seed=3)
    answers = caller.infer("ensemble", inputs)
    assert [whole_text(answers, row) for row in range(4)] == [greedy] * 4
    for top in ({"top_k": 1}, {"top_p": 1e-6}):
        (answer,) = caller.infer("ensemble", text_inputs(PROMPT, max_tokens=16, temperature=1.0, **top))
        assert whole_text([answer]) == greedy


def test_log_probabilities_are_those_of_the_tokens(caller: GrpcCaller) -> None:
    answers = caller.infer("ensemble", text_inputs(PROMPT, max_tokens=20, stream=True, return_log_probs=True))
    each = np.concatenate([answer["output_log_probs"].ravel() for answer in answers])
    assert len(each) == 20 and (each <= 0).all() and each.max() > -1
    assert answers[-1]["cum_log_probs"].ravel()[0] == pytest.approx(each.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"beam_width": 2}, "beam_width"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "512"),
        ({"num_draft_tokens": 3}, "num_draft_tokens"),
        ({"num_draft_tokens": 0}, "cannot leave speculation out for a single request"),
        ({"embedding_bias_words": ["x"]}, "embedding_bias_words"),
    ],
)
def test_refusals_name_what_is_wrong(caller: GrpcCaller, inputs: dict[str, Any], told: str) -> None:
    with pytest.raises(ServerRefusal, match=told):
        caller.infer("ensemble", text_inputs(PROMPT, **inputs))


@pytest.mark.parametrize("door", DOORS)
def test_a_client_that_leaves_ends_its_generation(served: Deployment, caller: GrpcCaller, door: str) -> None:
    emitted = "drafthouse_spec_tokens_total/vllm"
    before = served.metrics()[emitted]
    stream = caller.open(door, text_inputs(PROMPT, max_tokens=450, stream=True))
    next(iter(stream))
    wait_until(lambda: served.running() == 1, "the request is counted")  # vLLM tells its figures now and then
    stream.cancel()
    wait_until(lambda: served.running() == 0 and served.used_blocks() == 0, "nothing runs, nothing is kept")
    assert served.metrics()[emitted] - before < 450


def test_eight_at_once_answer_as_each_alone(served: Deployment, caller: GrpcCaller) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(8)]
    alone = [whole_text(caller.infer("ensemble", text_inputs(prompt, max_tokens=12))) for prompt in prompts]
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        with GrpcCaller(served.grpc) as own:
            inputs = text_inputs(prompts[number], max_tokens=12, stream=True)
            texts[number] = whole_text(own.infer("ensemble", inputs))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Sums over other batches differ in the last bits: a text may part from its own where two tokens are nearly alike.
    assert sum(texts[number] == text for number, text in enumerate(alone)) >= 6


def test_the_kits_client_reads_it_as_any_other_engine(served: Deployment, caller: GrpcCaller) -> None:
    expected = whole_text(caller.infer("ensemble", text_inputs(PROMPT, max_tokens=20)))
    for protocol, address in (("grpc", served.grpc), ("http", served.http)):
        with DrafthouseClient(address, protocol=protocol) as client:  # type: ignore[arg-type]
            stream = client.stream(PROMPT, max_tokens=20)
            assert "".join(chunk.text for chunk in stream) == expected
            assert stream.result.acceptance is not None and (stream.result.acceptance.length or 0) > 1


@pytest.mark.parametrize("model", DOORS)
def test_nvidias_example_client(served: Deployment, caller: GrpcCaller, model: str) -> None:
    expected = whole_text(caller.infer("ensemble", text_inputs(PROMPT, max_tokens=MAX_TOKENS)))
    sent = always_sent(PROMPT, streaming=False)
    (result,) = ask(served, model, sent)
    assert text_of(result) == PROMPT + expected
    results = ask(served, model, always_sent(PROMPT, streaming=True))
    assert "".join(map(text_of, results)) == expected


def test_genai_perf(
    served: Deployment, caller: GrpcCaller, genai_perf: tuple[Environment, dict[str, str]], tmp_path: Path
) -> None:
    folder = profile(served, genai_perf, tmp_path)
    requests = json.loads((folder / "profile.json").read_text())["experiments"][0]["requests"]
    for request in requests:
        inputs = text_inputs(
            request["request_inputs"]["text_input"], max_tokens=OUTPUT_TOKENS, min_length=OUTPUT_TOKENS
        )
        text = "".join(chunk["text_output"] for chunk in request["response_outputs"])
        assert text == whole_text(caller.infer("ensemble", inputs))
    check_figures(json.loads((folder / "profile_genai_perf.json").read_text()))


def test_llama_index(served: Deployment, caller: GrpcCaller, llama_index: Environment) -> None:
    script = Path(__file__).with_name("llama_index_calls.py")
    command = [llama_index.python, script, served.grpc, PROMPT, "24"]
    report = json.loads(run(command, seconds=120, variables=llama_index.variables()).splitlines()[-1])
    assert report["complete"] == report["streamed"] == "".join(report["deltas"])
    whole = whole_text(caller.infer("ensemble", text_inputs(PROMPT, max_tokens=24)))
    assert whole.startswith(report["complete"]) and report["complete"]
    assert "the engine takes 512" in report["error"]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("deployments/smollm2-*-vllm.yaml")), ids=lambda path: path.stem
)
def test_the_release_takes_an_example_as_it_is(
    path: Path, vllm_environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert not list(asked_of_vllm(load_spec(path), vllm_environment))


def test_the_release_itself_says_what_is_wrong_with_an_argument(
    smollm2: Path, vllm_environment: Environment, tmp_path: Path
) -> None:
    wrong = {"max_number_of_sequences": 3}
    (finding,) = asked_of_vllm(
        deployment(smollm2, tmp_path, {"method": "none"}, arguments=wrong), vllm_environment
    )
    assert "max_number_of_sequences" in finding.reason
    (finding,) = asked_of_vllm(
        deployment(smollm2, tmp_path, {"method": "none"}, arguments={"block_size": -1}), vllm_environment
    )
    assert finding.name == "refused-by-vllm" and "block_size" in finding.reason


def test_a_schedule_is_followed_by_batch_size(
    smollm2: Path, vllm_environment: Environment, tmp_path: Path
) -> None:
    """ANPD drafts for one request, and nothing while two run."""
    speculation = {"method": "anpd", "draft_length": 4, "draft_length_schedule": {1: 4}}
    drafted, steps = "trtllm_spec_decode_num_draft_tokens_total", "drafthouse_spec_steps_total/vllm"
    spec = deployment(smollm2, tmp_path, speculation)
    with serving(spec, vllm_environment, tmp_path) as running, GrpcCaller(running.grpc) as caller:
        alone = whole_text(caller.infer("ensemble", text_inputs(PROMPT, max_tokens=24)))
        wait_until(lambda: running.metrics()[drafted] > 0, "one request is drafted for")
        before = running.metrics()
        answers = caller.infer("ensemble", text_inputs(PROMPT, PROMPT, max_tokens=24))
        assert [whole_text(answers, row) for row in (0, 1)] == [alone, alone]
        wait_until(lambda: running.metrics()[steps] - before[steps] >= 40, "the steps are counted")
        # One of the two begins, and may end, some steps before the other.
        assert running.metrics()[drafted] - before[drafted] <= before[drafted] / 2
