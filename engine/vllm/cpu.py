"""vLLM's CPU build: what its workers must find in their environment before they start."""

import os
import sys
from pathlib import Path


def prepare_worker(threads: int | None = None) -> None:
    """Give the worker Intel's OpenMP, which vLLM advises for speculation on a CPU, and `threads` cores.

    Args:
        threads: None leaves it to vLLM, which keeps one core for the scheduler, or to VLLM_CPU_OMP_THREADS_BIND.
    """
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.is_file():
        os.environ["LD_PRELOAD"] = str(openmp)
    if threads is not None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
