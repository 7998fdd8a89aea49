"""`verify` on real vLLM: what it says of one that is right, and of one that samples wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.verify import _asks
from client import DrafthouseClient
from engine.lossless.served import Check
from engine.lossless.two_servers import TwoServerSettings, verify_two_servers
from planner.bench.peers.environments import Environment
from tests.end_to_end.deployment import Deployment
from tests.outside.test_vllm_served import PROMPT, deployment, serving

pytestmark = [pytest.mark.outside, pytest.mark.model]
PROMPTS = {
    "counting": PROMPT,
    "story": "Once upon a time",
    "list": "Red, green, blue, red, green, blue, red,",
}
SETTINGS = TwoServerSettings(max_tokens=32, concurrency=(1, 4), sampled_prompts=3, draws=32)


@pytest.fixture(scope="module")
def plain(
    smollm2: Path, vllm_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("plain")
    with serving(deployment(smollm2, folder, {"method": "none"}), vllm_environment, folder) as running:
        yield running


def verified(plain: Deployment, drafting: Deployment) -> dict[str, Check]:
    with DrafthouseClient(plain.grpc) as without, DrafthouseClient(drafting.grpc) as beside:
        checks = verify_two_servers(PROMPTS, _asks(without), _asks(beside), SETTINGS, lambda output: None)
        return {check.name.partition(",")[0]: check for check in checks}


def test_a_right_one_passes_and_the_controls_are_caught(
    plain: Deployment, smollm2: Path, vllm_environment: Environment, tmp_path: Path
) -> None:
    speculation = {"method": "anpd", "draft_length": 4}
    with serving(deployment(smollm2, tmp_path, speculation), vllm_environment, tmp_path) as drafting:
        checks = verified(plain, drafting)
    assert all(check.passed is not False for check in checks.values()), checks
    assert checks["greedy"].passed and checks["control: answers drawn at temperature 1.5"].passed
    assert checks["sampled"].passed, checks["sampled"]


def test_one_that_samples_wrongly_is_found_out(
    plain: Deployment,
    smollm2: Path,
    vllm_environment: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's CPU build as it is, without the kit's plugin, loses temperatures as soon as something drafts."""
    monkeypatch.setattr("build.vllm.repository.PLUGIN", {})
    speculation = {"method": "anpd", "draft_length": 4}
    with serving(deployment(smollm2, tmp_path, speculation), vllm_environment, tmp_path) as drafting:
        checks = verified(plain, drafting)
    assert checks["sampled"].passed is False, checks["sampled"]
