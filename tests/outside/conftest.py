"""What outside clients talk to, and what their answers are checked against."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from build.compile import compile_engine
from build.repository import assemble_repository
from build.targets.errors import TargetError
from build.targets.prepare import prepare_target
from deploy.triton import TritonServer
from deployments.cache import cache_directory
from deployments.spec import DeploymentSpec
from planner.bench.peers import environments as peers
from planner.bench.peers.environments import Environment, Unavailable
from tests.conftest import SMOLLM2
from tests.end_to_end.calls import http_generate
from tests.end_to_end.deployment import Deployment, deployed, wait_until
from tests.outside.environments import REQUIREMENTS, debian_library, prepare_environment
from tests.ports import free_ports

MAX_SEQUENCE_LENGTH = 512
Prepare = Callable[[str], Environment]
Answer = Callable[[str, int], str]


@pytest.fixture(scope="session")
def vllm_environment() -> Environment:
    """The CPU build of vLLM, where `drafthouse peers` and `serve` have it."""
    try:
        return peers.prepare_environment(peers.REQUIREMENTS / "vllm.txt", cache_directory() / "peers")
    except Unavailable as reason:
        pytest.skip(f"vllm: {reason}")


@pytest.fixture(scope="session")
def tiny_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("tiny-deployment"), "byte-level", stop_by_id=True) as deployment:
        yield deployment


@pytest.fixture
def tiny(tiny_deployment: Deployment) -> Iterator[Deployment]:
    """A tiny random model behind Triton; it must be idle again after the test."""
    yield tiny_deployment
    wait_until(tiny_deployment.is_idle, "no request runs and all KV blocks are free")


@pytest.fixture(scope="session")
def smollm2_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    try:
        prepare_target("smollm2-135m", SMOLLM2)
    except TargetError as error:
        pytest.skip(f"no target to serve: {error}")
    folder = tmp_path_factory.mktemp("smollm2-deployment")
    http, grpc, metrics = free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    spec = DeploymentSpec.model_validate(
        {
            "name": "outside",
            "target": {"model": SMOLLM2},
            "engine": {"max_batch_size": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH},
            "speculation": {"method": "anpd"},
            "serving": ports,
        }
    )
    engine, log = folder / "engine", folder / "triton.log"
    compile_engine(SMOLLM2, engine, precision="int8", max_sequence_length=MAX_SEQUENCE_LENGTH)
    repository = assemble_repository(spec, engine, folder / "repository")
    with TritonServer(repository, **ports, log=log) as server:
        server.wait_until_ready()
        yield Deployment(server, spec, SMOLLM2, engine, repository, log)


@pytest.fixture
def smollm2_served(smollm2_deployment: Deployment) -> Iterator[Deployment]:
    """SmolLM2-135M behind Triton as users serve it; it must be idle again after the test."""
    yield smollm2_deployment
    wait_until(smollm2_deployment.is_idle, "no request runs and all KV blocks are free")


@pytest.fixture(scope="session")
def outside() -> Prepare:
    """Prepares a client's environment by name, or skips the test."""

    def prepare(name: str) -> Environment:
        try:
            return prepare_environment(REQUIREMENTS / f"{name}.txt")
        except Unavailable as reason:
            pytest.skip(f"{name}: {reason}")

    return prepare


@pytest.fixture
def greedy_answer(smollm2_served: Deployment) -> Answer:
    """The server's own greedy answer to a prompt without speculation, asked for by hand."""

    def answer(prompt: str, max_tokens: int) -> str:
        fields = {"text_input": prompt, "max_tokens": max_tokens, "num_draft_tokens": 0}
        text: str = http_generate(smollm2_served.http, fields)[0]["text_output"]
        return text

    return answer


@pytest.fixture(scope="session")
def genai_perf(outside: Prepare) -> tuple[Environment, dict[str, str]]:
    """The environment, and the variables with which perf_analyzer finds its libraries."""
    try:
        base64 = debian_library("libb64.so.0d", "libb64-0d")
    except Unavailable as reason:
        pytest.skip(f"perf_analyzer: {reason}")
    environment = outside("genai_perf")
    libraries = [str(environment.installed("nvidia/cuda_runtime/lib")), str(base64 or "")]
    path = os.pathsep.join(filter(None, libraries))
    return environment, environment.variables(LD_LIBRARY_PATH=path, HF_HUB_OFFLINE="1")


@pytest.fixture(scope="session")
def llama_index(outside: Prepare) -> Environment:
    return outside("llama_index")
