"""Killed runs end with the weights of an uninterrupted one; two processes equal one with double accumulation."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from speculators.training.run import Job, train  # noqa: E402
from tests.speculators.training.samples import ignore  # noqa: E402

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[3]
STEPS = 30  # of a run on the tiny samples, at least
PROGRAM = """
import sys
import torch
from pathlib import Path
from deployments.training import TrainingSpec
from speculators.training.run import Job, train
torch.set_num_threads(1)
settings = TrainingSpec.model_validate_json(sys.argv[1])
job = Job("eagle3", "eagle3", Path(sys.argv[2]), Path(sys.argv[3]), settings)
train(job, lambda *_: None, lambda record: print(record.step, flush=True))
"""


def start(job: Job, **environment: str) -> "subprocess.Popen[str]":
    arguments = [job.training.model_dump_json(), str(job.target), str(job.checkpoint)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def weights(job: Job) -> dict[str, Any]:
    return load_file(job.checkpoint / "model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kills_at_random_steps_do_not_change_the_weights(make_job: Any, optimizer: str) -> None:
    settings = {"epochs": 1, "save_every": 3, "evaluate_every": 100, "optimizer": optimizer}
    job = make_job("eagle3", **settings)
    finish(start(job))
    whole = weights(job)

    killed = make_job("eagle3", "killed", **settings)
    for last in sorted(random.Random(0).sample(range(1, STEPS), 5)):
        process = start(killed)
        assert process.stdout is not None
        while int(process.stdout.readline()) < last:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        assert not killed.checkpoint.exists()
    finish(start(killed))
    found = weights(killed)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


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
    finish(start(one))
    two = make_job("eagle3", "two", epochs=1, accumulation=1, features="online")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    processes = [start(two, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    for process in processes:
        finish(process)
    first, second = weights(one), weights(two)
    for name in first:
        assert torch.allclose(first[name].float(), second[name].float(), rtol=0, atol=1e-5), name
