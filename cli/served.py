"""What a service gives without speculation, under a few loads: the part of a profile that takes a running server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cli.checks import traffic_of
from cli.common import EVERY, errors, text_prompts
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
        prompts: a JSONL of them; those that do not fit beside an answer are left out.
        users: who ask at once, load by load.
        max_tokens: of an answer.
        rounds: how often each load is measured.

    Raises:
        SpecError: no prompt fits.
        what `loadtest.sweep.run_sweep` raises.
    """
    texts = text_prompts(spec, prompts, EVERY, max_tokens)
    asked = sweep_settings(spec, [], "grpc", 1)
    plain = asked.arms[:1]
    changes = {
        "arms": plain,
        "concurrency": tuple(users),
        "request_rates": (),
        "cache": "cold",
        "max_tokens": max_tokens,
        "rounds": rounds,
        "requests": _REQUESTS,
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drafthouse-")))
        fitting = folder / "prompts.jsonl"
        lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
        fitting.write_text("\n".join(lines))
        settings = asked.model_copy(update={**changes, "prompts": fitting})
        progress = stack.enter_context(Progress(settings, errors))
        run = RunDirectory(folder / "loads")
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
