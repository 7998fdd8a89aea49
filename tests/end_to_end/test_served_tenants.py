"""Tenants of one service do not find out what others have asked: neither by counts of reused blocks nor by speed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.calls import GrpcCaller, text_inputs, token_inputs, whole_text
from tests.end_to_end.deployment import Deployment, deployed

pytestmark = pytest.mark.triton
SECRET = "one two three four five six seven eight nine ten " * 12
DOORS = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture(scope="module")
def shared_by_tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    speculation = {"method": "anpd", "drafted_by": "bls", "draft_length": 4}
    folder = tmp_path_factory.mktemp("tenants")
    with deployed(folder, "byte-level", speculation=speculation, kv_cache_sharing="salted") as deployment:
        yield deployment


def reused(deployment: Deployment, door: str, text: str, salt: str = "", **fields: int) -> int:
    """Blocks that a request has found in the cache, by its own figures."""
    more = {"cache_salt": [salt]} if salt else {}
    with GrpcCaller(deployment.grpc) as caller:
        answers = caller.infer(
            door, text_inputs(text, max_tokens=4, return_perf_metrics=True, **more, **fields)
        )
    return int(answers[-1]["kv_cache_reused_blocks"].ravel()[0])


@pytest.mark.parametrize("door", DOORS)
def test_without_a_salt_nothing_is_shared(shared_by_tenants: Deployment, door: str) -> None:
    text = f"{door} {SECRET}"
    assert [reused(shared_by_tenants, door, text, num_draft_tokens=0) for _ in range(3)] == [0, 0, 0]
    assert reused(shared_by_tenants, door, text, salt="guess", num_draft_tokens=0) == 0


@pytest.mark.parametrize("door", DOORS)
def test_a_tenant_finds_its_own_again(shared_by_tenants: Deployment, door: str) -> None:
    text = f"{door} of a tenant {SECRET}"
    counts = [
        reused(shared_by_tenants, door, text, salt, num_draft_tokens=0) for salt in ("mine", "mine", "yours")
    ]
    assert counts[0] == counts[2] == 0 < counts[1]


def test_tokens_are_parted_as_texts_are(shared_by_tenants: Deployment) -> None:
    inputs = token_inputs(list(range(5, 200)), 4, return_perf_metrics=True)
    with GrpcCaller(shared_by_tenants.grpc) as caller:
        found = [
            int(caller.infer("tensorrt_llm", inputs)[-1]["kv_cache_reused_blocks"].ravel()[0])
            for _ in range(2)
        ]
    assert found == [0, 0]


def test_calls_of_one_generation_share_their_prompt(shared_by_tenants: Deployment) -> None:
    """Drafts in the BLS make a call of each step; the whole counts what those after the first have found."""
    assert reused(shared_by_tenants, "tensorrt_llm_bls", f"drafted {SECRET}", num_draft_tokens=4) > 0
    with GrpcCaller(shared_by_tenants.grpc) as caller:
        texts = {
            whole_text(
                caller.infer(
                    "tensorrt_llm_bls", text_inputs(SECRET, max_tokens=40, num_draft_tokens=count, **more)
                )
            )
            for count in (0, 4)
            for more in ({}, {"cache_salt": ["mine"]})
        }
    assert len(texts) == 1


def test_by_default_the_next_one_finds_what_was_asked_before(
    speculating_deployment: Deployment,
) -> None:
    """Or the tests above would prove nothing."""
    text = f"public {SECRET}"
    first, second = (reused(speculating_deployment, "ensemble", text, num_draft_tokens=0) for _ in range(2))
    assert first == 0 < second
