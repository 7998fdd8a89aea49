"""Token Recycling: the walk over the matrix, what teaches it, and that the output stays the target's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from build.trtllm.support.matrix import unchecked
from deployments.findings import UnsupportedDeployment
from engine.attention_kernels import KernelName
from engine.request import GenerationRequest, SamplingParams
from engine.vllm.speculation import speculation_findings
from speculators.outcome import StepOutcome
from speculators.token_recycling import TokenRecycling, static_tree
from speculators.tree import ROOT, TokenTree
from tests.build.trtllm.specs import deployment as on_tensorrt_llm
from tests.engine.deployed import deployment, opened
from tests.engine.driving import generate, make_engine, prompt_of, run
from tests.engine.tables import TableRunner
from tests.tiny import KERNELS, TinyTargets

SECTION = {"method": "token_recycling", "max_draft_tokens": 9}


def taught(speculator: TokenRecycling, request_id: int, *steps: tuple[int, list[int]]) -> None:
    """Steps without drafts: what was emitted, and the target's likeliest tokens before it."""
    for emitted, likeliest in steps:
        speculator.observe(request_id, StepOutcome([emitted], target_tokens=np.array([likeliest])))


def test_a_draft_is_the_walk_over_the_matrix() -> None:
    speculator = TokenRecycling(max_draft_tokens=6, candidates=2)
    speculator.start(0, [9, 5])
    taught(speculator, 0, (6, [6, 7]), (7, [7, 5]), (5, [5, 8]))
    # At 5 come 6 and 7, at 6 come 7 and 5, at 7 come 5 and 8.
    tree = speculator.propose([0], [6])[0]
    expected = {(0,): 6, (0, 0): 7, (1,): 7, (0, 0, 0): 5, (1, 0): 5, (0, 1): 5}
    assert set(static_tree(6, 2)) == set(expected)
    assert list(tree.tokens) == [expected[path] for path in static_tree(6, 2)]
    assert [tree.tokens[node] for node in tree.children(ROOT)] == [6, 7]
    assert speculator.propose([0], [2])[0] == tree.truncate(2)


def test_rejected_nodes_teach_as_well_and_what_is_newer_counts() -> None:
    speculator = TokenRecycling(max_draft_tokens=3, candidates=1)
    speculator.start(0, [5])
    tree = TokenTree.chain([6, 8])
    answers = np.array([[7], [3], [4]])
    speculator.observe(0, StepOutcome([7], tree, (), target_tokens=answers))  # at 5: 7, at 6: 3, at 8: 4
    taught(speculator, 0, (6, [6]))
    assert speculator.propose([0], [3])[0].tokens == (3,)
    taught(speculator, 0, (8, [8]))
    assert speculator.propose([0], [3])[0].tokens == (4,)


@pytest.mark.parametrize("shared", [True, False])
def test_requests_learn_from_each_other_if_they_may(shared: bool) -> None:
    speculator = TokenRecycling(shared=shared, candidates=1)
    speculator.start(0, [5])
    speculator.start(1, [5])
    taught(speculator, 0, (6, [6]))
    assert speculator.propose([1], [1])[0].tokens == ((6,) if shared else ())


@pytest.mark.parametrize(("nodes", "children"), [(1, 1), (5, 1), (12, 8), (80, 8)])
def test_the_static_tree(nodes: int, children: int) -> None:
    paths = static_tree(nodes, children)
    assert len(paths) == min(nodes, 6) if children == 1 else nodes
    for place, path in enumerate(paths):
        assert path[:-1] in ((), *paths[:place]), "parents come first"
        assert path[-1] == 0 or (*path[:-1], path[-1] - 1) in paths[:place], "and likelier ranks"
    assert static_tree(min(nodes, 3), children) == paths[:3]


@pytest.mark.parametrize("setting", ["max_draft_tokens", "candidates"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"token_recycling: {setting} is 0"):
        TokenRecycling(**{setting: 0})  # type: ignore[arg-type]


def test_it_is_often_right_where_the_target_repeats_itself() -> None:
    """Sampled tokens count as well: they are first among the successors."""
    requests = [
        GenerationRequest((number, 2, 3), 60, SamplingParams(0.5 * (number % 2), seed=number))
        for number in range(8)
    ]
    engine = make_engine(TableRunner(), TokenRecycling(), adaptive_drafts=False)
    assert [each.tokens for each in run(engine, requests)] == [
        generate(TableRunner(), each).tokens for each in requests
    ]
    assert (engine.statistics.tokens_per_step or 0) > 1.3
    assert engine.statistics.drafted_tokens > 4 * engine.statistics.accepted_tokens > 0  # trees


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_output_is_the_targets_own(precision: str, kernel: KernelName, tiny_targets: TinyTargets) -> None:
    runner = tiny_targets.runner("llama", precision, kernel)
    requests = [
        GenerationRequest(prompt_of(length), 50, SamplingParams(0.9 * (length % 2), seed=length))
        for length in (1, 12, 31, 90)
    ]
    engine = make_engine(runner, TokenRecycling(max_draft_tokens=6))
    assert [each.tokens for each in run(engine, requests)] == [
        generate(runner, each).tokens for each in requests
    ]
    assert engine.statistics.accepted_tokens > 0


def test_a_deployment_of_it(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    engine, runner = opened(SECTION, tiny_targets, tmp_path)
    (outcome,) = run(engine, [GenerationRequest(prompt_of(40), 100)])
    assert outcome.tokens == generate(runner, GenerationRequest(prompt_of(40), 100)).tokens
    assert engine.statistics.accepted_tokens > 0


def test_other_engines_refuse_it_with_a_remedy() -> None:
    absent = "token_recycling on line B: TensorRT-LLM does not have this method"
    with pytest.raises(UnsupportedDeployment, match=absent):
        unchecked(on_tensorrt_llm("token_recycling", "B"))
    (finding,) = speculation_findings(deployment(SECTION).speculation)
    assert (
        finding.reason == "method token_recycling: vLLM 0.32.0 does not have this method" and finding.remedy
    )
