"""`drafthouse profile`: its figures are those of the engine, and its intervals hold the truth as often as they say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from build.compile import compile_engine
from build.drafters import compile_speculator
from deployments.spec import DeploymentSpec
from deployments.speculation import Anpd, AnySpeculation
from engine.deployment import open_engine
from engine.request import GenerationRequest
from planner.profile import cost
from planner.profile.acceptance import ratio, summarise
from planner.profile.plot import plot_profile
from planner.profile.records import RequestRecord, StepRecord, follow, load_records
from planner.profile.run import ProfileSettings, run_profile
from speculators.match import LONGEST
from speculators.tree import ROOT, TokenTree
from tests.drafters import UNTRAINED, VARIANT, TinyDrafters, planted_prompts
from tests.engine.driving import prompt_of, run
from tests.tiny import MAX_LENGTH, THREADS

TREE = TokenTree((5, 6, 7, 8, 9), (ROOT, ROOT, 0, 0, 3))


@pytest.mark.parametrize(
    ("emitted", "children", "ranks", "path"),
    [
        ([4], (2,), (), ()),
        ([5, 1], (2, 2), (0,), (0,)),
        ([6, 1], (2,), (1,), (1,)),
        ([5, 8, 9, 2], (2, 2, 1), (0, 1, 0), (0, 3, 4)),
        ([5, 8, 1], (2, 2, 1), (0, 1), (0, 3)),
    ],
)
def test_a_record_follows_the_emitted_tokens(
    emitted: list[int], children: tuple[int, ...], ranks: tuple[int, ...], path: tuple[int, ...]
) -> None:
    assert follow(TREE, emitted) == StepRecord(5, 3, children, ranks, path)


def test_figures_are_sums_over_requests() -> None:
    drafts = [
        StepRecord(5, 3, (2, 2, 1), (0, 1, 0), (0, 3, 4), 40, 2),
        StepRecord(5, 3, (2,), (), (), 44, 0),
        StepRecord(2, 1, (2,), (1,), (1,), 45, 2),
    ]
    records = [
        RequestRecord("1", "math", 0.0, 12, 4, drafts),
        RequestRecord("2", "qa", 0.0, 3, 3, [StepRecord(1, 1, (1,), (), ())]),
    ]
    found = summarise(records)
    assert found["acceptance_length"]["value"] == 15 / 7
    assert found["acceptance_rate"]["value"] == 4 / 13
    assert found["by_category"]["qa"]["acceptance_length"]["value"] == 1
    assert [figure["value"] for figure in found["by_position"]] == [2 / 4, 1 / 2, 1 / 2]
    assert [(figure["value"], figure["count"]) for figure in found["by_rank"]] == [(2 / 6, 6), (2 / 4, 4)]
    assert [(figure["value"], figure["count"]) for figure in found["by_match"][:3]] == [
        (0, 1),
        (None, 0),
        (2, 2),
    ]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        steps = random.integers(5, 40, 60)
        # Requests differ: resampling steps instead of requests would give intervals that are far too short.
        rates = random.beta(4, 4, 60)
        accepted = random.binomial(steps, rates)
        figure = ratio(accepted.tolist(), steps.tolist(), seed=trial)
        assert figure.low is not None and figure.high is not None and figure.value is not None
        held += figure.low <= 0.5 <= figure.high
        assert figure.low < figure.value < figure.high
    assert 0.90 < held / 300 < 0.98


def test_nothing_drafted_is_no_error() -> None:
    found = summarise([RequestRecord("1", "math", 0.0, 5, 5, [])])
    assert found["acceptance_length"]["value"] == 1
    assert (found["acceptance_rate"]["value"], found["acceptance_rate"]["count"]) == (None, 0)
    assert found["acceptance_length"]["low"] is None  # one request tells nothing about others
    assert found["by_position"] == found["by_rank"] == []


def test_an_answer_of_no_tokens_is_a_request_without_acceptance() -> None:
    records = [RequestRecord("1", "math", 0.0, 0, 0, []), RequestRecord("2", "qa", 0.0, 6, 3, [])]
    found = summarise(records)
    assert (found["requests"], found["acceptance_length"]["value"]) == (2, 2)
    assert found["by_category"]["math"]["acceptance_length"]["value"] is None


def deployment(drafters: TinyDrafters, speculation: AnySpeculation) -> DeploymentSpec:
    """A tiny deployment, built in the current directory."""
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": drafters.targets.source(VARIANT)},
            "engine": {"max_batch_size": 3, "max_sequence_length": MAX_LENGTH, "threads": THREADS},
            "speculation": speculation.model_dump(),
        }
    )
    compile_engine(spec.target.model, spec.engine_directory, precision="int8", max_sequence_length=MAX_LENGTH)
    compile_speculator(
        speculation,
        spec.speculator_directory,
        target=spec.target.model,
        precision=spec.speculator_precision,
        max_sequence_length=MAX_LENGTH,
    )
    return spec


@pytest.mark.torch
@pytest.mark.parametrize("name", ["medusa, tree", "eagle3, chain", "eagle3, in turns", "peagle, chain"])
def test_the_profile_of_a_planted_speculator(
    name: str, tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = deployment(tiny_drafters, tiny_drafters.speculation(name, "int8", planted=True))
    prompts = {("known", str(index)): prompt for index, prompt in enumerate(planted_prompts()[:4])}
    prompts |= {("random", str(index)): prompt_of(9, index) for index in range(3)}
    records: list[RequestRecord] = []
    settings = ProfileSettings(max_tokens=24, batches=(1, 2, 16), tokens=(1, 3), rounds=0)
    found = run_profile(spec, prompts, settings, records.append)
    assert len(records) == 14 and {record.temperature for record in records} == {0.0, 1.0}
    for record in records:
        contexts = [draft.context for draft in record.drafts]
        assert contexts == sorted(set(contexts)) and contexts[:1] >= [9]  # the shortest prompt, and a token
        assert all(
            0 <= draft.match <= LONGEST and len(draft.path) == len(draft.ranks) for draft in record.drafts
        )
    raw = tmp_path / "records.jsonl"
    raw.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    assert load_records(raw) == records
    greedy = found["acceptance"]["0"]
    fixed = spec.model_copy(update={"speculation": spec.speculation.model_copy(update={"adaptive": False})})
    engine, _ = open_engine(fixed, spec.engine_directory, {spec.name: spec.speculator_directory})
    run(engine, [GenerationRequest(tuple(prompt), 24, end_ids=frozenset({2})) for prompt in prompts.values()])
    assert greedy["acceptance_length"]["value"] == pytest.approx(engine.statistics.tokens_per_step)
    lengths = {key: item["acceptance_length"]["value"] for key, item in greedy["by_category"].items()}
    assert lengths["known"] > 1.3 and lengths["known"] > lengths["random"] >= 1
    assert all(0 <= item["low"] <= item["value"] <= item["high"] <= 1 for item in greedy["by_position"])
    assert len(greedy["by_rank"]) == (10 if "tree" in name else 1)
    assert len(greedy["by_position"]) == (7 if "turns" in name else 4)
    plot_profile(found, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_costs_are_measured_for_every_batch_and_length(
    tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = deployment(tiny_drafters, Anpd(method="anpd", draft_length=4))
    prompts = {("any", "1"): prompt_of(9)}
    settings = ProfileSettings(4, (0.0,), (16, 64, 999), batches=(1, 2, 16), tokens=(1, 3, 8), rounds=2)
    found = run_profile(spec, prompts, settings, lambda record: None)["cost"]
    assert [(row["context"], row["batch"], row["tokens"]) for row in found["verify"]] == [
        (context, batch, tokens) for context in (16, 64) for batch in (1, 2) for tokens in (1, 3, 8)
    ]
    assert [(row["context"], row["batch"], row["tokens"]) for row in found["draft"]] == [
        (context, batch, tokens) for context in (16, 64) for batch in (1, 2) for tokens in (1, 2, 4)
    ]
    assert [(row["context"], row["tokens"]) for row in found["read"]] == [
        (0, 64)
    ]  # no chunk is longer than a context
    assert all(len(row["ms"]) == 2 and min(row["ms"]) > 0 for rows in found.values() for row in rows)
    json.dumps(found)


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", ["draft_model, chain", "eagle, tree", "eagle3, chain", "peagle, chain", *UNTRAINED]
)
def test_costs_of_a_drafter_with_a_cache_fill_it_to_the_last_row(
    name: str, tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests at once, each as long as the deployment takes; a step that would be longer is left out."""
    monkeypatch.chdir(tmp_path)
    context = MAX_LENGTH - 3 - 2 * cost._REPEATS
    for module in ("planner.profile.cost", "planner.bench.measure"):
        monkeypatch.setattr(f"{module}.MOST_TOKENS", MAX_LENGTH - context)
    spec = deployment(tiny_drafters, tiny_drafters.speculation(name, "int8", planted=False))
    settings = ProfileSettings(4, (0.0,), (context,), batches=(1, 3), tokens=(1, 2, 3, 4), rounds=1)
    found = run_profile(spec, {("any", "1"): prompt_of(9)}, settings, lambda record: None)["cost"]
    assert {row["tokens"] for row in found["verify"]} == {1, 2, 3}
    assert [(row["batch"], row["tokens"]) for row in found["draft"]] == [(1, 1), (1, 2), (3, 1), (3, 2)]


@pytest.mark.torch
def test_costs_of_drafts_made_in_turns_are_those_of_the_drafter_up_to_the_whole_length(
    tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the three tokens that the drafter drafts the lookup goes on to seven, and a plan asks what those cost."""
    monkeypatch.chdir(tmp_path)
    section = tiny_drafters.speculation("draft_model, in turns", "int8", planted=False)
    settings = ProfileSettings(4, (0.0,), (64,), batches=(1,), tokens=(1, 4, 8), rounds=2)
    spec = deployment(tiny_drafters, section)
    found = run_profile(spec, {("any", "1"): prompt_of(9)}, settings, lambda record: None)["cost"]["draft"]
    assert [row["tokens"] for row in found] == [1, 3, 7]
    assert all(len(row["ms"]) == 2 and min(row["ms"]) > 0 for row in found)


def test_a_deployment_too_short_for_costs_is_profiled_without(
    tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = deployment(tiny_drafters, Anpd(method="anpd", draft_length=4))
    settings = ProfileSettings(4, (0.0,), (MAX_LENGTH,), batches=(1,), tokens=(1, 3), rounds=1)
    assert run_profile(spec, {("any", "1"): prompt_of(9)}, settings, lambda record: None)["cost"] == {}


def test_costs_reach_as_far_as_long_drafts(
    tiny_drafters: TinyDrafters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = deployment(tiny_drafters, Anpd(method="anpd", draft_length=20))
    settings = ProfileSettings(4, (0.0,), (16,), batches=(1,), tokens=(1, 8), rounds=1)
    found = run_profile(spec, {("any", "1"): prompt_of(9)}, settings, lambda record: None)["cost"]
    assert [row["tokens"] for row in found["verify"]] == [1, 8, 32]
    assert [row["tokens"] for row in found["draft"]] == [1, 7, 20]
