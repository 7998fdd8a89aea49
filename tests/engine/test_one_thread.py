"""Engines of one thread do not wait for each other's processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.runner import SequenceInput
from tests.runners import openvino_runner
from tests.tiny import TinyTargets

ROOT = Path(__file__).resolve().parents[2]
STEPS = 300


def tasks() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def processors_seen(engine: Path, threads: int) -> set[frozenset[int]]:
    """Sets of processors that the engine's threads were bound to, looked at again and again while steps run."""
    before = tasks()
    runner = openvino_runner(engine, num_blocks=4, threads=threads)
    seen, done = set[frozenset[int]](), threading.Event()

    def look() -> None:
        while not done.wait(0.0005):
            for task in tasks() - before:
                try:
                    seen.add(frozenset(os.sched_getaffinity(task)))
                except ProcessLookupError:
                    continue

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(STEPS):
        runner.forward([SequenceInput(range(16), 0, [0])])
    done.set()
    looking.join()
    return seen


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_a_single_thread_is_bound_to_no_processor(tiny_targets: TinyTargets) -> None:
    """In a process of its own: OpenVINO keeps threads for networks to come."""
    engine = tiny_targets.engine("llama", "fp32")
    asked = "from tests.engine.test_one_thread import *; print([*map(len, processors_seen(Path(sys.argv[1]), {}))])"
    one, two = (
        subprocess.run(
            [sys.executable, "-c", asked.format(threads), str(engine)],
            cwd=ROOT, capture_output=True, text=True, timeout=180, check=True,
        ).stdout
        for threads in (1, 2)
    )  # fmt: skip
    assert json.loads(one) == [len(os.sched_getaffinity(0))]
    assert 1 in json.loads(two), "several are bound, so it can be seen"
