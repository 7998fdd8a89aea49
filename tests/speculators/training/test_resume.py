"""Killed runs end with the weights of an uninterrupted one; two processes equal one with double accumulation."""

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from speculators.training.run import Job, train  # noqa: E402
from tests.ports import free_ports  # noqa: E402
from tests.speculators.training.processes import Run  # noqa: E402
from tests.speculators.training.samples import ignore  # noqa: E402

pytestmark = pytest.mark.torch

SAVED_EVERY = 3
# Before anything is saved; while the first state is written; from it on; right before, at, and right after another.
KILLED_AFTER = (2, 3, 5, 11, 12, 13)


def weights(job: Job) -> dict[str, Any]:
    return load_file(job.checkpoint / "model.safetensors")


@pytest.mark.parametrize(
    ("method", "optimizer", "killed_after"),
    [("eagle3", "adamw", KILLED_AFTER), ("eagle3", "muon", KILLED_AFTER), ("peagle", "adamw", (5,))],
)
def test_kills_do_not_change_the_weights(
    make_job: Any, method: str, optimizer: str, killed_after: Sequence[int]
) -> None:
    settings = {
        "epochs": 1,
        "batch_tokens": 512,
        "save_every": SAVED_EVERY,
        "evaluate_every": 100,
        "optimizer": optimizer,
    }
    job = make_job(method, **settings)
    Run(job).finish()
    whole = weights(job)

    killed = make_job(method, "killed", **settings)
    for step in killed_after:
        Run(killed).kill_after(step)
        assert not killed.checkpoint.exists()
    Run(killed).finish()
    found = weights(killed)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    curves = killed.training.directory / f"{method}-outputs" / "curves.png"
    assert curves.read_bytes().startswith(b"\x89PNG")


def test_another_seed_gives_other_weights(make_job: Any) -> None:
    job = make_job("medusa", epochs=1)
    train(job, ignore, ignore)
    first = load_file(job.checkpoint / "medusa_lm_head.safetensors")
    other = make_job("medusa", epochs=1, seed=1)
    train(other, ignore, ignore, fresh=True, replace=True)
    second = load_file(job.checkpoint / "medusa_lm_head.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_two_processes_equal_one_with_double_accumulation(make_job: Any) -> None:
    one = make_job("eagle3", epochs=1, accumulation=2, features="online")
    Run(one).finish()
    two = make_job("eagle3", "two", epochs=1, accumulation=1, features="online")
    (port,) = free_ports(1)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    runs = [Run(two, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for run in runs:
        run.finish()
    first, second = weights(one), weights(two)
    for name in first:
        assert torch.allclose(first[name].float(), second[name].float(), rtol=0, atol=1e-5), name
