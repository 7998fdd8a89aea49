"""The runner's promise on machines with more processors than this one has.

`tests/processors/as_if_cpus` lets a process see N processors, and OpenVINO then starts N threads. What is run there
are the tests that compare bits on this machine, chosen so that chains, trees, batches, prompt chunks, continuations and
drafters with a cache of their own are among them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import FULL_SIZE, TinyTargets

TESTS = Path(__file__).parents[1]
AS_IF_CPUS = TESTS / "processors" / "as_if_cpus"
BITS = ("tests/engine/test_runner_bits.py", "tests/engine/test_runner_trees.py")
ONE_OF_SEVERAL = ("PYTEST_XDIST_WORKER", "OMP_NUM_THREADS")  # see tests/conftest.py
OUTPUT = (
    "tests/engine/test_drafters_output.py",
    "tests/engine/test_engine_continuation.py",
)


@pytest.fixture(scope="module")
def compiled(tiny_targets: TinyTargets) -> Path:
    """Where the engines lie that those tests run, compiled once for all of them."""
    for precision in ("fp32", "int8", "int4"):
        tiny_targets.engine(FULL_SIZE, precision)
    return tiny_targets.root


def alone() -> dict[str, str]:
    """The environment of a process that may use all processors; `nproc`, too, counts by `OMP_NUM_THREADS`."""
    return {name: value for name, value in os.environ.items() if name not in ONE_OF_SEVERAL}


def run_tests(processors: int, compiled: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        [AS_IF_CPUS, str(processors), *pytest_command],
        cwd=TESTS.parent,
        env={**alone(), "DRAFTHOUSE_TEST_THREADS": "0", "DRAFTHOUSE_TEST_TARGETS": str(compiled)},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    """What `as_if_cpus` needs: a compiler, and mounts of its own."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    found = subprocess.run([AS_IF_CPUS, "3", "nproc"], env=alone(), capture_output=True, text=True)
    if found.stdout.strip() != "3":
        pytest.skip(f"this machine does not let a process see other processors: {found.stderr.strip()}")


@pytest.mark.parametrize("processors", [4, 8, 16])
def test_logits_are_the_same_bit_for_bit(processors: int, compiled: Path) -> None:
    done = run_tests(processors, compiled, "-k", "full_size", *BITS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_output_is_that_of_plain_decoding(compiled: Path) -> None:
    done = run_tests(8, compiled, "-k", "sampled_output or (calls_give and int8 and varying)", *OUTPUT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_kernel_that_is_chosen_by_the_number_of_threads_is_noticed(compiled: Path) -> None:
    done = run_tests(
        8, compiled, "-p", "tests.processors.without_padding", "-k", "full_size and int8 and openvino", *BITS
    )
    assert done.returncode == 1 and "AssertionError" in done.stdout, done.stdout + done.stderr
