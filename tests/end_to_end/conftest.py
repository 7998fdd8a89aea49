"""One served deployment for all end-to-end tests, and what it has to answer, computed without Triton."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.calls import GrpcCaller
from tests.end_to_end.deployment import Deployment, deployed, wait_until
from tests.end_to_end.reference import Reference


@pytest.fixture(scope="session")
def shared_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployment"), "byte-level", stop_by_id=True) as deployment:
        yield deployment


DRAFT_LENGTH = 5
_NGRAMS = {"tensorrt_llm_draft_model_name": "", "drafter": "anpd", "drafter_settings": '{"ngram": 4}'}


@pytest.fixture(scope="session")
def speculating_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """`tensorrt_llm_bls` drafts with the target in int8; copies of it draft otherwise, or with nothing at all."""
    speculation = {
        "method": "draft_model",
        "drafted_by": "bls",
        "precision": "int8",
        "draft_length": DRAFT_LENGTH,
    }
    more = {
        "bls_anpd": _NGRAMS,
        "bls_lookup": {**_NGRAMS, "drafter": "prompt_lookup"},
        "bls_lost": {"tensorrt_llm_draft_model_name": "no_such_model"},
    }
    folder = tmp_path_factory.mktemp("speculating")
    with deployed(folder, "byte-level", speculation=speculation, more_bls=more) as deployment:
        yield deployment


@pytest.fixture
def served(shared_deployment: Deployment) -> Iterator[Deployment]:
    """The server; whatever a test did, nothing may run and every cache block must be free afterwards."""
    yield shared_deployment
    wait_until(shared_deployment.is_idle, "no request runs and all KV blocks are free")


@pytest.fixture(scope="session")
def reference(shared_deployment: Deployment) -> Reference:
    """Plain decoding of the same engine, in this process."""
    return Reference(shared_deployment.engine)


@pytest.fixture
def grpc_caller(served: Deployment) -> Iterator[GrpcCaller]:
    with GrpcCaller(served.grpc) as caller:
        yield caller
