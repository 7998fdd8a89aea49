"""What a service gives without speculation, under a few loads: the part of a profile that takes a running server."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.checks import traffic_of
from cli.common import errors
from cli.measure import sweep_settings
from deployments.spec import DeploymentSpec
from loadtest.measures import MeasuredCell, cells_of
from loadtest.plan import load_points
from loadtest.run_directory import RunDirectory
from loadtest.sweep import measure_sweep
from loadtest.terminal import Progress

_REQUESTS = 4


def serving_loads(
    spec: DeploymentSpec, prompts: Path, users: Sequence[int], *, max_tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """Ask the running server of a deployment, without drafts; gives what `planner.plan.profiles.Profile.serving` is.

    Args:
        spec: the deployment.
        prompts: a JSONL of them.
        users: who ask at once, load by load.
        max_tokens: of an answer.
        rounds: how often each load is measured.

    Raises:
        what `loadtest.sweep.run_sweep` raises.
    """
    asked = sweep_settings(spec, [], "grpc", 1)
    plain = asked.arms[:1]
    changes = {
        "arms": plain,
        "prompts": prompts.resolve(),
        "concurrency": tuple(users),
        "request_rates": (),
        "cache": "cold",
        "max_tokens": max_tokens,
        "rounds": rounds,
        "requests": _REQUESTS,
    }
    settings = asked.model_copy(update=changes)
    with tempfile.TemporaryDirectory(prefix="drafthouse-") as folder, Progress(settings, errors) as progress:
        run = RunDirectory(Path(folder) / "loads")
        with run.locked():
            if measure_sweep(settings, run, progress):
                raise KeyboardInterrupt
        cells = [MeasuredCell.of(cell, records) for cell, records in run.finished()]
    found = []
    for load in load_points(settings):
        measured = cells_of(cells, plain[0].name, load.label)
        traffic = traffic_of(load.level, measured)
        rates = [cell.rate for cell in measured if cell.rate]
        if traffic and rates:
            found.append(
                {
                    "concurrency": traffic.concurrency,
                    "prompt_tokens": traffic.prompt_tokens,
                    "output_tokens": traffic.output_tokens,
                    "tokens_per_second": rates,
                }
            )
    return found
