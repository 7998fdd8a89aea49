"""Token trees: defaults that fit their engines, trees that are refused, and both notations."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build.trtllm.methods.table import tree_of
from build.trtllm.methods.trees import (
    MC_SIM_7B_63,
    as_braces,
    default_tree,
    depth,
    non_leaves,
    tree_findings,
)
from build.trtllm.support.matrix import resolve
from deployments.findings import UnsupportedDeployment
from tests.build.trtllm.specs import deployment


def test_medusas_tree_has_its_published_shape():
    assert list(tree_findings(MC_SIM_7B_63, 63)) == []
    assert len(MC_SIM_7B_63) == 63
    assert depth(MC_SIM_7B_63) == 4
    assert MC_SIM_7B_63[:6] == ((0,), (0, 0), (1,), (0, 1), (2,), (0, 0, 0))
    assert MC_SIM_7B_63[-3:] == ((0, 0, 0, 1), (1, 6), (0, 7, 0))


@given(st.integers(1, 16), st.integers(1, 256), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_default_trees_keep_every_limit(levels, nodes, most_non_leaves):
    if nodes < levels:
        with pytest.raises(UnsupportedDeployment, match="at least"):
            resolve(deployment("eagle", speculation={"depth": levels, "max_draft_tokens": nodes}))
        return
    tree = default_tree(levels, nodes, most_non_leaves)
    assert list(tree_findings(tree, nodes)) == []
    assert depth(tree) == levels
    assert max(non_leaves(tree), default=0) <= most_non_leaves


def test_a_default_tree_uses_its_nodes_where_they_fit():
    assert len(default_tree(3, 40, 40)) == 40
    assert default_tree(1, 63, 63) == tuple((rank,) for rank in range(10))
    assert default_tree(4, 63, 10) == MC_SIM_7B_63
    assert default_tree(4, 63, 9) != MC_SIM_7B_63


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        (((0,), (0, 1, 2)), r"\[0, 1, 2\] but not \[0, 1\]"),
        (((0,), (0,)), r"\[0\] twice"),
        ((), "at least one"),
        (((),), "at least one"),
        (((0,), (1,), (2,)), "3 nodes"),
    ],
)
def test_what_is_no_tree_is_found(choices, reason):
    found = list(tree_findings(choices, 2))
    assert all(finding.severity == "error" and finding.remedy for finding in found)
    assert any(re.search(reason, finding.reason) for finding in found)


def test_all_that_is_wrong_with_a_tree_is_told_at_once():
    wrong = {"choices": [[0], [0], [1, 0], [2, 0], [0, 0, 0]], "num_heads": 2}
    with pytest.raises(UnsupportedDeployment) as refusal:
        resolve(deployment("medusa", speculation=wrong))
    told = [finding.reason for finding in refusal.value.findings]
    for part in ("[0] twice", "not [1]", "not [2]", "not [0, 0]", "are 3 deep"):
        assert any(part in reason for reason in told), part


def test_eagle_wants_its_depth_exactly_and_few_parents():
    fits = {"depth": 2, "max_non_leaves": 2, "choices": [[0], [1], [0, 0], [1, 0]]}
    assert tree_of(resolve(deployment("eagle", speculation=fits))) == ((0,), (1,), (0, 0), (1, 0))
    for change, reason in [({"depth": 3}, "depth is 3"), ({"max_non_leaves": 1}, "2 nodes with children")]:
        with pytest.raises(UnsupportedDeployment, match=reason):
            resolve(deployment("eagle", speculation=fits | change))


def test_default_trees_follow_the_heads():
    assert tree_of(resolve(deployment("medusa"))) == MC_SIM_7B_63
    shallow = tree_of(resolve(deployment("medusa", speculation={"num_heads": 2})))
    assert shallow is not None
    assert depth(shallow) == 2
    deep = tree_of(resolve(deployment("eagle", speculation={"depth": 6, "max_draft_tokens": 30})))
    assert deep is not None
    assert (depth(deep), len(deep)) == (6, 30)
    assert tree_of(resolve(deployment("lookahead"))) is None


def test_notation():
    assert as_braces(((0,), (0, 0), (1,), (0, 1))) == "{0}, {0, 0}, {1}, {0, 1}"
