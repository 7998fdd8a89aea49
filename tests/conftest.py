"""Fixtures that more than one room uses."""

from pathlib import Path

import pytest

from tests.tiny import TinyTargets

SMOLLM2 = Path(__file__).parents[1] / "models" / "smollm2-135m"


@pytest.fixture(scope="session")
def tiny_targets(tmp_path_factory: pytest.TempPathFactory) -> TinyTargets:
    """Tiny random targets and their compiled engines."""
    return TinyTargets(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M in Hugging Face layout; tests that use it are marked `model`."""
    if not (SMOLLM2 / "model.safetensors").is_file():
        pytest.skip(f"{SMOLLM2} is missing: drafthouse model smollm2-135m models/smollm2-135m")
    return SMOLLM2
