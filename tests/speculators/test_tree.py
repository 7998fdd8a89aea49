"""The token tree: its mask, depths and children agree with the parents, and wrong trees are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.tree import EMPTY, ROOT, TokenTree


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    size = draw(st.integers(0, 20))
    parents = tuple(draw(st.integers(ROOT, node - 1)) for node in range(size))
    tokens = tuple(draw(st.lists(st.integers(0, 50), min_size=size, max_size=size)))
    return TokenTree(tokens, parents)


def ancestors(tree: TokenTree, node: int) -> list[int]:
    """The node, its parent, and so on up to the root."""
    path = [node]
    while path[-1] != ROOT:
        path.append(tree.parents[path[-1]])
    return path


@given(trees())
def test_mask_marks_ancestors_and_self(tree: TokenTree) -> None:
    mask = tree.ancestor_mask()
    assert mask.shape == (len(tree) + 1, len(tree) + 1)
    for node in range(ROOT, len(tree)):
        assert set(np.flatnonzero(mask[node + 1]) - 1) == set(ancestors(tree, node))


@given(trees())
def test_depth_is_the_number_of_steps_to_the_root(tree: TokenTree) -> None:
    assert tree.depths == tuple(len(ancestors(tree, node)) - 1 for node in range(len(tree)))


@given(trees())
def test_children_partition_the_nodes_in_order(tree: TokenTree) -> None:
    families = [tree.children(node) for node in range(ROOT, len(tree))]
    assert sorted(node for family in families for node in family) == list(range(len(tree)))
    assert all(list(family) == sorted(family) for family in families)
    assert all(tree.parents[child] == node - 1 for node, family in enumerate(families) for child in family)


@given(trees(), st.integers(0, 25))
def test_truncation_keeps_the_first_nodes(tree: TokenTree, size: int) -> None:
    kept = tree.truncate(size)
    assert kept.tokens == tree.tokens[:size]
    assert kept.parents == tree.parents[:size]
    assert np.array_equal(kept.ancestor_mask(), tree.ancestor_mask()[: len(kept) + 1, : len(kept) + 1])


def test_truncation_drops_proposals_of_dropped_nodes() -> None:
    proposals = [np.full(4, 0.25, np.float32)] * 3
    kept = TokenTree.chain([1, 2, 3], proposals).truncate(2)
    assert kept.proposals is not None
    assert set(kept.proposals) == {ROOT, 0, 1}
    assert TokenTree.chain([1, 2, 3]).truncate(2).proposals is None


def test_chain_hangs_each_token_below_the_one_before() -> None:
    first, second = np.array([0.5, 0.5], np.float32), np.array([0.1, 0.9], np.float32)
    tree = TokenTree.chain([1, 0], [first, second])
    assert tree.parents == (ROOT, 0)
    assert tree.proposals is not None
    assert tree.proposals[ROOT] is first
    assert tree.proposals[0] is second
    assert tree == TokenTree((1, 0), (ROOT, 0))


def test_empty_tree_is_the_root_alone() -> None:
    assert len(EMPTY) == 0
    assert EMPTY.depths == ()
    assert EMPTY.ancestor_mask().tolist() == [[True]]


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ((1, 2), (ROOT,), "one parent per token"),
        ((1,), (0,), "parent of node 0 is 0"),
        ((1, 2), (ROOT, 2), "parent of node 1 is 2"),
        ((1,), (-2,), "parent of node 0 is -2"),
        ((1, -5), (ROOT, 0), "token -5 is negative"),
    ],
)
def test_wrong_trees_are_refused(tokens: tuple[int, ...], parents: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree(tokens, parents)


def test_proposals_must_belong_to_nodes() -> None:
    with pytest.raises(ValueError, match="proposal for node 3"):
        TokenTree((1,), (ROOT,), {3: np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="2 tokens but 1 proposals"):
        TokenTree.chain([1, 2], [np.ones(2, np.float32)])
    with pytest.raises(ValueError, match="cannot keep -1"):
        EMPTY.truncate(-1)


def test_a_chain_goes_on_with_another_one() -> None:
    half = np.full(2, 0.5, np.float32)
    first, second = TokenTree.chain([3, 4], scores=[-1.0, -1.5]), TokenTree.chain([5], [half], [-0.25])
    whole = first.extended(second)
    assert whole == TokenTree.chain([3, 4, 5]) and whole.scores == (-1.0, -1.5, -1.75)
    assert whole.proposals is not None and list(whole.proposals) == [1], "drawn below the last node"
    assert EMPTY.extended(first) == first and EMPTY.extended(first).scores == first.scores
    assert EMPTY.extended(second).proposals == second.proposals
    assert first.extended(TokenTree.chain([5])).scores is None, "it is not known how likely all of it is"


def test_only_a_chain_goes_on_and_only_with_a_chain() -> None:
    branches, probed = TokenTree((1, 2), (ROOT, ROOT)), TokenTree((1,), (ROOT,), probes=1)
    chain = TokenTree.chain([1])
    for one, other in ((branches, chain), (chain, branches), (probed, chain), (chain, probed)):
        with pytest.raises(ValueError, match="only a chain can go on, and only with a chain"):
            one.extended(other)
