"""What the tests of `deploy/` talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.answering import Answering, answering
from tests.end_to_end.deployment import Deployment, deployed


@pytest.fixture
def server() -> Iterator[Answering]:
    with answering() as state:
        yield state


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A tiny random model behind a real Triton."""
    with deployed(tmp_path_factory.mktemp("deploy"), "byte-level") as deployment:
        yield deployment
