"""Training runs in processes of their own, which can be killed.

They are forked from a process that has imported PyTorch and has computed nothing: importing takes longer than the runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from speculators.training.run import Job, train

_FORKED = get_context("forkserver")
# The others are what a run imports when it comes to them.
_FORKED.set_forkserver_preload(
    [__name__, "matplotlib.figure", "torch._dynamo", "transformers.models.llama.modeling_llama"]
)


class Run:
    """A run that has begun; `environment` is added to this process's."""

    def __init__(self, job: Job, environment: Mapping[str, str] | None = None) -> None:
        self._records, other = _FORKED.Pipe(duplex=False)
        self._process = _FORKED.Process(target=_train, args=(job, dict(environment or {}), other))
        self._process.start()
        other.close()

    def kill_after(self, step: int) -> None:
        """Kill it as soon as it has told of a step.

        Raises:
            EOFError: it ended before.
        """
        while self._records.recv() < step:
            pass
        self._process.kill()
        self._process.join()

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        self._process.join(240)
        assert self._process.exitcode == 0


def _train(job: Job, environment: Mapping[str, str], records: Connection) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)

    def tell(record: Any) -> None:
        records.send(record.step)

    train(job, lambda *_: None, tell)
