"""Trees from measurement: no tree of as many nodes is worth more, Sequoia's dynamic programme finds the same, and how
large they are follows from what rows cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plan import Plan, Trees
from planner.plan.ranks import Floats, rank_acceptance
from planner.plan.serving import planned
from planner.plan.trees import Family, family, one_tree, planned_trees
from planner.plan.words import tree_table
from planner.profile.records import RequestRecord, StepRecord
from speculators.growth import Choices
from tests.planner.synthetic_plan import plan_from
from tests.planner.synthetic_trees import Path, drafted, medusa

CHANCE = st.floats(0.01, 0.6)


@st.composite
def acceptances(draw: st.DrawFn, *, falling: bool, levels: int = 3, ranks: int = 3) -> Floats:
    """``[levels, ranks]``, of each level at most 1 in all."""
    rows = []
    for _ in range(draw(st.integers(1, levels))):
        row = np.asarray(draw(st.lists(CHANCE, min_size=ranks, max_size=ranks)))
        row /= max(1.0, row.sum())
        rows.append(-np.sort(-row) if falling else row)
    return np.asarray(rows)


def all_trees(acceptance: Floats, nodes: int, depth: int) -> Iterator[frozenset[Path]]:
    """Every tree of `nodes` nodes on at most `depth` levels."""
    ranks = acceptance.shape[1]

    def below(tree: frozenset[Path]) -> Iterator[Path]:
        for path in {(), *tree}:
            if len(path) < depth:
                yield from ((*path, rank) for rank in range(ranks) if (*path, rank) not in tree)

    found = {frozenset[Path]()}
    for _ in range(nodes):
        found = {tree | {path} for tree in found for path in below(tree)}
    yield from found


def worth(acceptance: Floats, tree: Sequence[Path] | frozenset[Path]) -> float:
    return 1 + sum(
        float(np.prod([acceptance[level, rank] for level, rank in enumerate(path)])) for path in tree
    )


def sequoia(acceptance: Floats, nodes: int, depth: int) -> float:
    """The dynamic programme of arXiv 2402.12374, section 3.1, by level too: a child comes after its siblings.

    `with_children`: the most that a node on `level` with `size` nodes in its tree, itself among them, is worth, if it
    has exactly `children` children; of the last of which `below` nodes are in its own tree.
    """
    levels, ranks = acceptance.shape

    @cache
    def with_children(size: int, level: int, children: int) -> float:
        if children == 0:
            return 1.0 if size == 1 else -np.inf
        if level == levels or size <= children:
            return -np.inf
        chance = float(acceptance[level, children - 1])
        return max(
            with_children(size - below, level, children - 1) + chance * best(below, level + 1)
            for below in range(1, size)
        )

    def best(size: int, level: int) -> float:
        most = ranks if level < min(levels, depth) else 0
        return max(with_children(size, level, children) for children in range(most + 1))

    return best(nodes + 1, 0)


def possible(acceptance: Floats, nodes: int, depth: int) -> int:
    levels, ranks = map(int, acceptance.shape)
    most: int = sum(ranks**level for level in range(1, min(levels, depth) + 1))
    return min(nodes, most)


@settings(max_examples=30, deadline=None)
@given(acceptances(falling=False), st.integers(1, 4), st.integers(1, 3))
def test_no_tree_of_as_many_nodes_is_worth_more(acceptance: Floats, nodes: int, depth: int) -> None:
    found = family(acceptance, nodes, depth)
    size = possible(acceptance, nodes, depth)
    assert len(found.paths) == size
    assert max(map(len, found.paths)) <= depth
    assert worth(acceptance, found.paths) == pytest.approx(found.tokens(depth)[-1])
    best = max(worth(acceptance, tree) for tree in all_trees(acceptance, size, min(depth, len(acceptance))))
    assert worth(acceptance, found.paths) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(acceptances(falling=True, levels=5, ranks=4), st.integers(1, 14), st.integers(1, 5))
def test_sequoia_s_dynamic_programme_finds_the_same_where_acceptance_falls_with_rank(
    acceptance: Floats, nodes: int, depth: int
) -> None:
    size = possible(acceptance, nodes, depth)
    assert family(acceptance, nodes, depth).tokens(depth)[-1] == pytest.approx(
        sequoia(acceptance, size, depth)
    )


def test_where_it_does_not_fall_children_in_the_order_of_their_ranks_bring_less() -> None:
    """And best trees would not hold the smaller ones, if they had to be drawn in that order."""
    acceptance = np.asarray([[0.3, 0.05, 0.6]] * 2)
    for nodes in (1, 2, 3, 4):
        assert sequoia(acceptance, nodes, 2) < family(acceptance, nodes, 2).tokens(2)[-1]
    ordered = [1 + 0.3, 1 + 0.3 + 0.09 * 1, 1 + 0.3 + 0.05 + 0.6]
    assert sequoia(acceptance, 1, 2) == pytest.approx(ordered[0])
    assert sequoia(acceptance, 2, 2) == pytest.approx(max(ordered[1], 1.35))
    assert sequoia(acceptance, 3, 2) == pytest.approx(ordered[2])  # without (0, 0), which the two have


@given(acceptances(falling=False), st.integers(2, 20))
def test_every_tree_holds_the_smaller_ones_and_each_node_more_brings_less(
    acceptance: Floats, nodes: int
) -> None:
    found = family(acceptance, nodes)
    for size in range(1, len(found.paths)):
        smaller = family(acceptance, size)
        assert list(smaller.paths) == list(found.paths[:size])
        Choices(smaller.paths)  # raises where a path's beginning is missing
    assert all(before >= after for before, after in pairwise(found.values))
    tokens = [found.tokens(depth) for depth in range(1, len(acceptance) + 1)]
    assert all((np.diff(row) >= 0).all() for row in tokens)
    assert all(
        (after[: len(before)] >= before - 1e-12).all()
        for before, after in pairwise([Family(found.paths, found.values).tokens(d) for d in (1, 2, 3)])
    )


RANKS = np.asarray([[0.6, 0.15, 0.06], [0.5, 0.15, 0.06], [0.4, 0.15, 0.06]])
WHOLE = list(family(RANKS, 15).paths)


def grows_apart(context: int, batch: int, size: int) -> float:
    """The cache is read once for all rows of a request."""
    return 10 + batch * context / 20 + 0.8 * batch * size


def each_row_reads(context: int, batch: int, size: int) -> float:
    """Every row reads the context for itself."""
    return 10 + batch * size * (context / 20 + 0.8)


@pytest.mark.parametrize("paths", [WHOLE, [(0,), (2,), (0, 0), (0, 2), (2, 1)]])
def test_acceptance_by_rank_and_level_is_what_drafts_were_made_with(paths: Sequence[Path]) -> None:
    section = {"method": "medusa", "choices": paths}
    found = rank_acceptance([RequestRecord("1", "a", 0.0, 0, 0, drafted(paths, RANKS, 20_000))], section)
    assert found is not None
    for path in paths:
        assert found[len(path) - 1, path[-1]] == pytest.approx(RANKS[len(path) - 1, path[-1]], abs=0.03)


@pytest.mark.parametrize("left", [0, 2000])
def test_drafts_that_were_cut_for_a_request_that_ends_count_for_what_they_had(left: int) -> None:
    """Answers that are shorter than the tree has nodes have no others."""
    paths = sorted(WHOLE, key=lambda path: (len(path), path))
    drafts = drafted(paths, RANKS, left)
    for nodes in (2, 5, len(paths) - 1):
        drafts += drafted(paths[:nodes], RANKS, 8_000, seed=nodes)
    found = rank_acceptance(
        [RequestRecord("1", "a", 0.0, 0, 0, drafts)], {"method": "medusa", "choices": paths}
    )
    assert found is not None
    for path in paths[:-1]:
        assert found[len(path) - 1, path[-1]] == pytest.approx(RANKS[len(path) - 1, path[-1]], abs=0.04)


def test_guesses_that_were_left_out_of_a_tree_of_the_likeliest_count_as_wrong() -> None:
    sure = StepRecord(1, 1, (1,), (0,), (0,))
    unsure = StepRecord(2, 1, (2,), (1,), (1,))
    records = [RequestRecord("1", "a", 0.0, 0, 0, [sure] * 500 + [unsure] * 500)]
    found = rank_acceptance(records, {"method": "eagle"})
    assert found is not None and found[0] == pytest.approx([0.5, 0.5], abs=1e-6)
    named = rank_acceptance(records, {"method": "eagle", "choices": [(0,), (1,)]})
    assert named is not None and named[0] == pytest.approx([0, 1], abs=1e-6)  # the others were cut short
    assert rank_acceptance([], {"method": "eagle"}) is None


def sizes_of(found: Trees, batch: int) -> list[int]:
    return [size.nodes for size in found.sizes if size.batch == batch]


def test_trees_are_the_best_by_brute_force_and_grow_with_the_context() -> None:
    made = medusa(WHOLE, drafted(WHOLE, RANKS, 4_000), grows_apart)
    found = planned_trees(made, 0.0)
    assert found is not None
    acceptance = rank_acceptance(made.records, made.speculation)
    assert acceptance is not None
    for size in found.sizes:
        rates = {
            (nodes, depth): worth(acceptance, family(acceptance, nodes, depth).paths)
            / (grows_apart(size.context, size.batch, 1 + nodes) + (1.0 if nodes else 0.0))
            for depth in (1, 2, 3)
            for nodes in range(16)
        }
        # The costs between sizes that were measured are interpolated, which is exact here.
        assert rates[size.nodes, max(1, size.depth)] >= 0.998 * max(rates.values())
        assert worth(acceptance, found.tree(size.nodes, size.depth)) == pytest.approx(
            size.tokens_per_step, abs=1e-3
        )
    for batch in (1, 8):
        near, far = sizes_of(found, batch)
        assert near < far, "a row costs relatively less where more context is read anyway"
    assert sizes_of(found, 8)[0] < sizes_of(found, 1)[0]


def test_they_do_not_where_every_row_reads_the_context_for_itself() -> None:
    found = planned_trees(medusa(WHOLE, drafted(WHOLE, RANKS, 4_000), each_row_reads), 0.0)
    assert found is not None
    for batch in (1, 8):
        near, far = sizes_of(found, batch)
        assert far <= near
    assert sizes_of(found, 8)[1] == 0


def test_a_named_tree_gives_way_to_the_best_one_and_a_dynamic_one_does_not() -> None:
    """As a published tree may be of another model, and what is likeliest in a step is better than any."""
    flat = (
        [(rank,) for rank in range(3)]
        + [(0, rank) for rank in range(3)]
        + [(0, 0, rank) for rank in range(3)]
    )
    made = medusa(flat, drafted(flat, RANKS, 4_000), grows_apart)
    served = planned(made, made, 0.0)
    assert served.trees is not None
    choices = [tuple(path) for path in served.speculation["choices"]]
    assert choices == served.trees.choices and set(choices) != set(flat) and (1, 0) in choices
    assert served.drafter["choices"] == served.speculation["choices"]
    (survival,) = served.survival
    told = np.asarray(survival.accepted) / survival.tried
    assert told == pytest.approx(np.asarray(served.trees.acceptance), abs=1e-3)
    assert told[0] == pytest.approx(0.6, abs=0.03)
    dynamic = medusa(None, made.records[0].drafts, grows_apart)
    served = planned(dynamic, dynamic, 0.0)
    assert "choices" not in served.speculation and served.trees is not None
    assert len(served.survival[0].tried) == len(flat)


def test_engines_of_one_tree_get_the_smallest_of_those_that_are_best_where_it_pays() -> None:
    found = planned_trees(medusa(WHOLE, drafted(WHOLE, RANKS, 4_000), each_row_reads), 0.0)
    assert found is not None
    near = {size.batch: size for size in found.sizes if size.context == 32}
    assert near[1].nodes > near[4].nodes > 0
    assert one_tree(found, 40, [1]) == found.tree(near[1].nodes, near[1].depth)
    assert one_tree(found, 40, [1, 3]) == found.tree(near[4].nodes, near[4].depth), "the next larger batch"
    assert one_tree(found, 500, [1, 8]) == []
    never = near[8].model_copy(update={"nodes": 0, "depth": 0})
    partly = found.model_copy(update={"sizes": [near[1], near[4], never]})
    assert one_tree(partly, 40, [1, 8]) == one_tree(found, 40, [1])
    Choices(one_tree(found, 40, [1, 3]))


def test_the_table_has_a_tree_for_every_context_and_batch() -> None:
    found = planned_trees(medusa(WHOLE, drafted(WHOLE, RANKS, 4_000), each_row_reads), 0.0)
    assert found is not None
    columns = {str(column.header): list(column.cells) for column in tree_table(found, "heads").columns}
    assert columns["context"] == ["32", "512"]
    for batch in (1, 2, 4, 8):
        sizes = [size for size in found.sizes if size.batch == batch]
        assert columns[str(batch)] == [
            f"{each.nodes} ({each.depth})" if each.nodes else "none" for each in sizes
        ]
    assert "none" in columns["8"]


def test_chains_and_lookups_have_none_and_plans_keep_them() -> None:
    lookup = replace(
        medusa(WHOLE, drafted(WHOLE, RANKS, 100), grows_apart),
        speculation={"method": "anpd", "draft_length": 15},
    )
    assert planned_trees(lookup, 0.0) is None
    plan = plan_from([medusa(WHOLE, drafted(WHOLE, RANKS, 200), grows_apart)], (1, 8))
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.deployments["mine"].trees is not None
