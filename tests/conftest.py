"""Fixtures that more than one room uses."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.tiny import TinyTargets

if TYPE_CHECKING:
    from tests.drafters import TinyDrafters

SMOLLM2 = Path(__file__).parents[1] / "models" / "smollm2-135m"


@pytest.fixture(scope="session")
def tiny_targets(tmp_path_factory: pytest.TempPathFactory) -> TinyTargets:
    """Tiny random targets and their compiled engines."""
    return TinyTargets(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_drafters(tiny_targets: TinyTargets, tmp_path_factory: pytest.TempPathFactory) -> TinyDrafters:
    """Tiny drafters of every method, for the target `tests.drafters.VARIANT`; making them needs PyTorch."""
    from tests.drafters import TinyDrafters

    return TinyDrafters(tiny_targets, tmp_path_factory.mktemp("drafters"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M in Hugging Face layout; tests that use it are marked `model`."""
    if not (SMOLLM2 / "model.safetensors").is_file():
        pytest.skip(f"{SMOLLM2} is missing: drafthouse model smollm2-135m models/smollm2-135m")
    return SMOLLM2


# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# In the background of a shell SIGINT is ignored, under `nohup` SIGHUP; programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
