"""`draft_policy: measured` of a deployment that has been built: its drafters are measured at start, and it is exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.control.controller import Controller
from engine.deployment import open_engine
from engine.policy import ScheduledPolicy
from engine.request import GenerationRequest
from tests.drafters import UNTRAINED, TinyDrafters, planted_prompts
from tests.engine.driving import run
from tests.planner.test_profile import deployment

LOOKUPS = ("lookahead, tree",)


@pytest.mark.torch
@pytest.mark.parametrize(
    "name",
    [
        "medusa, tree",
        "eagle3, in turns",
        "draft_model, chain",
        "windowed, chain",
        "low_bit, chain",
        *LOOKUPS,
    ],
)
def test_costs_are_measured_before_the_first_request_and_the_output_stays_that_of_plain_decoding(
    name: str, tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = tiny_drafters.speculation(name, "int8", planted=name not in UNTRAINED)
    spec = deployment(tiny_drafters, section.model_copy(update={"draft_policy": "measured"}))
    directories, told = {spec.name: spec.speculator_directory}, list[str]()
    engine, _ = open_engine(spec, spec.engine_directory, directories, tell=told.append)
    assert isinstance(engine.policy, Controller)
    (line,) = told
    assert line.startswith("costs of ") and ": a step takes " in line and "plan" not in line
    assert (", a draft of tiny " in line) == (name not in LOOKUPS), "lookups cost next to nothing"
    prompts = [tuple(prompt) for prompt in planted_prompts()[:3]]
    drafted = run(engine, [GenerationRequest(prompt, 40) for prompt in prompts])
    verified = engine.statistics.drafted_tokens
    plain = run(engine, [GenerationRequest(prompt, 40, draft_length=0) for prompt in prompts])
    assert [each.tokens for each in drafted] == [each.tokens for each in plain]
    assert verified and engine.statistics.drafted_tokens == verified


def test_by_a_schedule_nothing_is_measured(
    tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = deployment(tiny_drafters, UNTRAINED["windowed, chain"])
    told = list[str]()
    directories = {spec.name: spec.speculator_directory}
    engine, _ = open_engine(spec, spec.engine_directory, directories, tell=told.append)
    assert type(engine.policy) is ScheduledPolicy and not told
