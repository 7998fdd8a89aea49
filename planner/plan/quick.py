"""A plan from a short profile of each deployment: minutes instead of an hour, for the load that a sweep will measure.

Greedy answers to some prompts at full draft length, and the costs of two rounds at the contexts that are asked about:
those of these prompts, and those that a service was measured at. Nothing of it is put where `drafthouse profile` keeps
what it has measured.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deployments.files.writing import write_json, write_text
from deployments.spec import DeploymentSpec
from engine.plan import Objective, Plan
from planner.plan.choose import options
from planner.plan.plan import make_plan
from planner.plan.predict import Traffic
from planner.plan.profiles import Profile, read_profile
from planner.profile.records import RequestRecord
from planner.profile.run import ProfileSettings, Prompts, run_profile

Report = Callable[[str, float | None], None]
PLAN = "plan.json"


def planned_loads(spec: DeploymentSpec, prompts: Prompts) -> list[Traffic]:
    """What a quick plan is for: concurrencies of a deployment's load test that it takes, at these prompts' length."""
    load, length = spec.loadtest, round(statistics.mean(map(len, prompts.values())))
    levels = [level for level in load.concurrency if level <= spec.embedded.max_batch_size]
    return [Traffic(level, length, max(2, load.max_tokens)) for level in sorted(levels) or [1]]


def quick_plan(
    specs: Sequence[DeploymentSpec],
    prompts: Prompts,
    folder: Path,
    report: Report = lambda line, share: None,
    serving: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """Profile deployments of one target that have been built, and write their plan, `plan.json` in the folder.

    Args:
        specs: the deployments; of the first one's load test the plan has the concurrencies and the length of answers.
        prompts: what to generate from.
        folder: gets profiles and plan.
        report: gets what goes on, and the share of it that is done.
        serving: what a service of one of them gave without speculation, see `planner.plan.profiles.Profile`.

    Raises:
        EngineError: an engine is missing or does not fit.
        ProfileError: the deployment takes no requests as long as its prompts are, or nothing decodes.
    """
    traffics = planned_loads(specs[0], prompts)
    # What serving adds is told at the contexts of the loads that it was measured under, which are other prompts'.
    asked = [traffic.context for traffic in (*traffics, *map(Traffic.of, serving))]
    settings = ProfileSettings(
        max_tokens=round(traffics[0].output_tokens),
        temperatures=(0.0,),
        contexts=tuple(sorted({math.floor(min(asked)), math.ceil(max(asked))})),
        batches=tuple(sorted({1, *(traffic.concurrency for traffic in traffics)})),
        tokens=(1, 2, 4, 8, 16),
        rounds=2,
    )
    profiles = [_profiled(spec, prompts, settings, folder / spec.name, report, serving) for spec in specs]
    first = profiles[0]
    alike = [each for each in profiles if not each.fingerprint.differences(first.fingerprint)]
    report("deciding", None)
    known = options(alike[:1], 0.0)
    for other in alike[1:]:
        known += options([other], 0.0)[1:]
    plan = make_plan(specs[0].name, alike, known, traffics, Objective(), 0.0)
    write_text(folder / PLAN, plan.model_dump_json(indent=1) + "\n")
    return plan


def _profiled(
    spec: DeploymentSpec,
    prompts: Prompts,
    settings: ProfileSettings,
    folder: Path,
    report: Report,
    serving: Sequence[Mapping[str, Any]],
) -> Profile:
    records: list[RequestRecord] = []
    found = run_profile(
        spec, prompts, settings, records.append, lambda line, share: report(f"{spec.name}: {line}", share)
    )
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    write_text(folder / "records.jsonl", lines)
    write_json(folder / "profile.json", {**found, "serving": list(serving)}, indent=1)
    return read_profile(folder)
