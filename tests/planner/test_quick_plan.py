"""A short profile of a deployment that names its tree, its plan, and the plan at work, on real graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.compile import compile_engine
from build.drafters import compile_speculator
from deployments.spec import DeploymentSpec, with_speculation
from engine.control.controller import Controller
from engine.deployment import open_engine
from engine.plan import load_plan
from engine.planned import check_plan, drafting, speculator_directories
from engine.request import GenerationRequest
from planner.plan.quick import PLAN, quick_plan
from tests.drafters import VARIANT, TinyDrafters, planted_prompts
from tests.engine.driving import prompt_of, run
from tests.tiny import MAX_LENGTH, THREADS

FLAT = [[rank] for rank in range(4)] + [[0, rank] for rank in range(4)] + [[0, 0, rank] for rank in range(2)]


def build(spec: DeploymentSpec) -> None:
    for each in drafting(spec):
        compile_speculator(
            each.speculation,
            each.speculator_directory,
            target=spec.target.model,
            precision="int8",
            max_sequence_length=MAX_LENGTH,
        )


@pytest.mark.torch
def test_a_named_tree_is_profiled_planned_and_replaced(
    tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = tiny_drafters.speculation("medusa, tree", "int8", planted=True).model_dump(exclude_unset=True)
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": tiny_drafters.targets.source(VARIANT)},
            "engine": {"max_batch_size": 3, "max_sequence_length": MAX_LENGTH, "threads": THREADS},
            "speculation": {**section, "choices": FLAT},
            "loadtest": {"max_tokens": 24, "concurrency": [1, 2]},
        }
    )
    compile_engine(spec.target.model, spec.engine_directory, precision="int8", max_sequence_length=MAX_LENGTH)
    build(spec)
    prompts = {("known", str(index)): prompt for index, prompt in enumerate(planted_prompts()[:4])}
    prompts |= {("random", str(index)): prompt_of(9, index) for index in range(2)}
    plan = quick_plan([spec], prompts, tmp_path / "quick")
    assert load_plan(tmp_path / "quick" / PLAN) == plan
    trees = plan.deployments["tiny"].trees
    assert trees is not None and {(size.batch) for size in trees.sizes} == {1, 2}
    assert trees.acceptance == sorted(trees.acceptance, reverse=True) and trees.acceptance[0] > 0.2

    served = with_speculation(spec, {"plan": tmp_path / "quick" / PLAN})
    check_plan(served)
    # Whatever it costs on this machine, the drafter is to be loaded.
    cell = plan.cells[0]
    last = cell.candidates[-1].model_copy(update={"worth": 2 * cell.best.worth})
    best = cell.model_copy(update={"best": last, "candidates": [*cell.candidates[:-1], last]})
    (tmp_path / "quick" / PLAN).write_text(plan.model_copy(update={"cells": [best]}).model_dump_json())
    (drafts,) = drafting(served)
    assert [tuple(path) for path in drafts.speculation.model_dump()["choices"]] == trees.choices
    build(served)
    engine, _ = open_engine(served, served.engine_directory, speculator_directories(served))
    assert isinstance(engine.policy, Controller)
    requests = [GenerationRequest(tuple(prompt), 24) for prompt in prompts.values()]
    plain = run(engine, [GenerationRequest(tuple(prompt), 24, draft_length=0) for prompt in prompts.values()])
    assert [each.tokens for each in run(engine, requests)] == [each.tokens for each in plain]
