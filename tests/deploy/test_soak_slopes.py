"""The soak's verdict on memory: a leak is seen through noise, and noise is not taken for one."""

from __future__ import annotations

import random

import pytest

from tests.soak.memory import Sample, slopes


def run(hours: float, growth: float, seed: int, level: float = 500.0) -> list[Sample]:
    """Samples of every 10 s: a beginning that climbs, noise that lasts, and growth in MiB an hour."""
    chance, noise, samples = random.Random(seed), 0.0, []
    for number in range(int(hours * 360)):
        passed = number / 360
        noise = 0.8 * noise + chance.gauss(0, 1)
        climb = 100 * min(1.0, passed / (0.15 * hours))
        half = (level + noise + climb) / 2
        samples.append(Sample(passed, {"stub": half + growth * passed, "tritonserver": half}))
    return samples


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_seen(seed: int) -> None:
    found = slopes([run(2, growth=20.0, seed=seed)])["all"]
    assert found.value == pytest.approx(20, abs=4) and found.low > 10 and found.grows


@pytest.mark.parametrize("seed", range(5))
def test_flat_memory_is_no_leak(seed: int) -> None:
    assert not slopes([run(2, growth=0.0, seed=seed)])["all"].grows


def test_runs_have_levels_of_their_own_and_one_slope() -> None:
    found = slopes([run(1, 12.0, seed=1), run(1, 12.0, seed=2, level=300.0)])
    assert found["all"].value == pytest.approx(12, abs=4)
    assert found["stub"].value == pytest.approx(12, abs=4) and abs(found["tritonserver"].value) < 3


def test_a_minute_says_nothing() -> None:
    assert not any(slope.grows for slope in slopes([run(0.1, 900.0, seed=3)]).values())
    assert slopes([run(0.003, 0.0, seed=3)]) == {}
