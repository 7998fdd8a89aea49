"""Trees grow around their likeliest nodes, or as published ranks say, and never beyond their budget."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.growth import Choices, Likeliest, TreeGrowth, TreeShape, max_branches
from speculators.tree import ROOT, TokenTree


def grown(shape: TreeShape, budget: int, seed: int = 0) -> tuple[TokenTree, dict[tuple[int, ...], float]]:
    """A tree from random guesses, and the score of every path of tokens that was guessed."""
    random, growth = np.random.default_rng(seed), TreeGrowth(shape, budget)
    paths: dict[int, tuple[int, ...]] = {ROOT: ()}
    scores: dict[tuple[int, ...], float] = {(): 0.0}
    while growth.frontier:
        before, frontier = len(growth.tokens), list(growth.frontier)
        # Distinct tokens, falling log-probabilities, as the drafters give them.
        tokens = np.stack([random.permutation(50)[: shape.most_children] for _ in frontier])
        log_probs = -np.sort(random.exponential(1, tokens.shape), axis=1)
        growth.grow(tokens, log_probs)
        for node in range(before, len(growth.tokens)):
            parent = growth.parents[node]
            row = frontier.index(parent)
            rank = tokens[row].tolist().index(growth.tokens[node])
            paths[node] = (*paths[parent], growth.tokens[node])
            scores[paths[node]] = scores[paths[parent]] + log_probs[row, rank]
    return growth.tree(), scores


def paths_of(tree: TokenTree) -> list[tuple[int, ...]]:
    paths: dict[int, tuple[int, ...]] = {ROOT: ()}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        paths[node] = (*paths[parent], token)
    return [paths[node] for node in range(len(tree))]


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 14),
    st.integers(0, 9),
)
def test_what_is_kept_are_the_best_of_all_guesses(
    depth: int, children: int, width: int, total: int, budget: int, seed: int
) -> None:
    tree, scores = grown(Likeliest(depth, (children,) * depth, width, total), budget, seed)
    assert len(tree) <= min(budget, total)
    assert max(tree.depths, default=0) <= depth
    kept = [scores[path] for path in paths_of(tree)]
    assert kept == sorted(kept, reverse=True)
    best = sorted((score for path, score in scores.items() if path), reverse=True)
    assert kept == best[: len(kept)]
    assert len(kept) == min(budget, total, len(best))


@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 9))
def test_a_chain_is_a_tree_with_one_child_a_node(length: int, budget: int, seed: int) -> None:
    shape = Likeliest.chain(length)
    tree, _ = grown(shape, budget, seed)
    assert tree.is_chain and len(tree) == min(length, budget)
    assert max_branches(shape) == 0


def test_a_chain_ends_where_it_becomes_unlikely() -> None:
    growth = TreeGrowth(Likeliest.chain(5, least=math.log(0.3)), 5)
    for token, probability in enumerate((0.9, 0.5, 0.5)):  # 0.9, 0.45, 0.225
        assert growth.frontier
        growth.grow([[token]], [[math.log(probability)]])
    assert not growth.frontier
    assert growth.tree().tokens == (0, 1, 2)


def test_choices_are_followed_rank_by_rank() -> None:
    shape = Choices([[0], [1], [0, 0], [0, 2], [0, 0, 1]])
    growth = TreeGrowth(shape, 10)
    growth.grow([[10, 11, 12]], [[-1.0, -2.0, -3.0]])
    assert growth.frontier == [0]
    growth.grow([[20, 21, 22]], [[-0.1, -0.2, -0.3]])
    growth.grow([[30, 31, 32]], [[-0.1, -9.0, -9.5]])
    assert growth.frontier == []
    assert set(paths_of(growth.tree())) == {(10,), (11,), (10, 20), (10, 22), (10, 20, 31)}
    assert (shape.depth, shape.most_children, shape.total, max_branches(shape)) == (3, 3, 5, 4)


@given(st.integers(0, 12), st.integers(0, 99))
def test_nothing_is_drafted_below_what_is_not_kept_and_nothing_is_missed(budget: int, seed: int) -> None:
    """Scores that depend on the path alone, so that all there could be is known."""
    ranks = [path for depth in (1, 2, 3) for path in itertools.product(range(3), repeat=depth)]
    random = np.random.default_rng(seed)
    steps = dict(zip(ranks, -random.exponential(1, len(ranks)), strict=True))
    scores = {path: sum(steps[path[: end + 1]] for end in range(len(path))) for path in ranks}
    growth = TreeGrowth(Choices(ranks), budget)
    paths: dict[int, tuple[int, ...]] = {ROOT: ()}
    while growth.frontier:
        worst = sorted(scores[paths[node]] for node in paths if node != ROOT)[-budget:][:1]
        assert all(node == ROOT or [scores[paths[node]]] >= worst for node in growth.frontier)
        below = [[(*paths[node], rank) for rank in range(3)] for node in growth.frontier]
        first = len(growth.tokens)
        growth.grow(
            [[ranks.index(path) for path in row] for row in below], [[steps[p] for p in r] for r in below]
        )
        paths |= dict(zip(range(first, len(growth.tokens)), itertools.chain(*below), strict=True))
    best = sorted(scores.values(), reverse=True)[:budget]
    assert growth.tree().scores == pytest.approx(best)


def test_a_level_that_could_not_be_kept_is_not_drafted() -> None:
    growth = TreeGrowth(Choices([[0], [1], [0, 0], [1, 0]]), 2)
    growth.grow([[10, 11]], [[-1.0, -1.5]])
    assert growth.frontier == [0, 1]
    growth = TreeGrowth(Choices([[0], [1], [2], [2, 0], [2, 0, 0]]), 2)
    growth.grow([[10, 11, 12]], [[-1.0, -1.5, -2.0]])
    assert growth.frontier == [] and growth.tree().tokens == (10, 11)


@pytest.mark.parametrize(
    ("paths", "message"),
    [([[0, 1]], r"\[0, 1\] is there without \[0\]"), ([], "no choices"), ([[]], "no choices")],
)
def test_choices_that_are_no_tree_are_refused(paths: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choices(paths)
