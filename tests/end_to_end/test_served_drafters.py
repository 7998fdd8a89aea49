"""Speculators behind a real Triton: output with and without them is the same, token for token."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from build.compile import compile_engine
from build.drafters import compile_speculator
from build.repository import assemble_repository
from client import DrafthouseClient, GenerationResult
from deploy.triton import TritonServer
from deployments.spec import DeploymentSpec
from tests.drafters import UNTRAINED, VARIANT, TinyDrafters, planted_prompts
from tests.end_to_end.deployment import running
from tests.engine.driving import prompt_of
from tests.ports import free_ports
from tests.tiny import MAX_LENGTH

pytestmark = [pytest.mark.triton, pytest.mark.torch]

TOKENS = 40
PROMPTS = [*planted_prompts()[:5], prompt_of(3), prompt_of(40), prompt_of(70)]


@pytest.fixture(
    scope="module",
    params=[
        "medusa, tree",
        "mlp_speculator, tree",
        "eagle3, tree",
        "eagle3, tree, enhanced",
        "peagle, chain",
        "draft_model, chain",
        *UNTRAINED,
    ],
)
def address(
    request: pytest.FixtureRequest, tiny_drafters: TinyDrafters, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server of the int8 target with a planted speculator."""
    tmp_path = tmp_path_factory.mktemp("drafters")
    http, grpc, metrics = free_ports(3)
    speculation = tiny_drafters.speculation(request.param, "int8", planted=True)
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": tiny_drafters.targets.source(VARIANT)},
            "engine": {"max_batch_size": 8, "max_sequence_length": MAX_LENGTH, "threads": 1},
            "speculation": speculation.model_dump(),
            "serving": {"http_port": http, "grpc_port": grpc, "metrics_port": metrics},
        }
    )
    engine = tmp_path / spec.engine_directory.name
    compile_engine(spec.target.model, engine, precision="int8", max_sequence_length=MAX_LENGTH)
    compile_speculator(
        speculation,
        tmp_path / spec.speculator_directory.name,
        target=spec.target.model,
        precision=spec.speculator_precision,
        max_sequence_length=MAX_LENGTH,
    )
    repository = assemble_repository(spec, engine, tmp_path / "repository")
    server = TritonServer(
        repository, http_port=http, grpc_port=grpc, metrics_port=metrics, log=tmp_path / "triton.log"
    )
    with running(server):
        yield f"127.0.0.1:{grpc}"


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_output_does_not_depend_on_speculation(address: str, temperature: float) -> None:
    with DrafthouseClient(address) as client:

        def ask(prompt: tuple[int, ...], drafts: int | None = None) -> GenerationResult:
            return client.generate_tokens(
                prompt, max_tokens=TOKENS, temperature=temperature, seed=3, num_draft_tokens=drafts
            )

        plain = [ask(prompt, 0).tokens for prompt in PROMPTS]
        for users in (1, 8):
            with ThreadPoolExecutor(users) as pool:
                found = list(pool.map(ask, PROMPTS))
            assert [answer.tokens for answer in found] == plain
            acceptance = [answer.acceptance for answer in found if answer.acceptance is not None]
            assert sum(each.accepted_tokens for each in acceptance) > 0
