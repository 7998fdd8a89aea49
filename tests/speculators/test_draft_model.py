"""Chains of a draft model: how far they go, and what its cache is asked to keep."""

import math
from collections.abc import Sequence

import numpy as np

from speculators.draft_model.draft import DraftModelDrafter
from speculators.graphs import Arrays, CachedInput, DrafterRows
from speculators.outcome import StepOutcome


class Counting:
    """A draft model that goes on counting, each time as sure as the token before says: token t has t / 100."""

    def __init__(self) -> None:
        self.calls: list[list[CachedInput]] = []

    def run(self, batch: Sequence[CachedInput]) -> Arrays:
        self.calls.append(list(batch))
        last = np.array([item.tokens[-1] for item in batch if item.outputs_from < len(item.tokens)])
        return {"candidates": last[:, None] + 1, "log_probs": np.log(last / 100)[:, None]}


def test_chains_end_where_they_become_unlikely_each_for_itself() -> None:
    graph = Counting()
    drafter = DraftModelDrafter(graph, 5, math.log(0.3))
    drafter.start(1, [7, 90])
    drafter.start(2, [7, 50])
    drafter.start(3, [7, 20])
    trees = drafter.propose([1, 2, 3], [5, 5, 5])
    # 0.9, 0.82, 0.75, 0.7, 0.66; 0.5, then 0.255; 0.2
    assert [tree.tokens for tree in trees] == [(91, 92, 93, 94, 95), (51, 52), (21,)]
    assert [len(call) for call in graph.calls] == [3, 2, 1, 1, 1]


def test_without_a_bound_chains_have_the_length_that_is_asked_for() -> None:
    drafter = DraftModelDrafter(Counting(), 5)
    drafter.start(1, [20])
    drafter.start(2, [20])
    assert [len(tree) for tree in drafter.propose([1, 2], [3, 0])] == [3, 0]


def test_rows_of_accepted_tokens_stay_and_others_are_overwritten() -> None:
    graph = Counting()
    drafter = DraftModelDrafter(graph, 3)
    drafter.start(1, [5, 6])
    assert drafter.propose([1], [3])[0].tokens == (7, 8, 9)  # 7 and 8 are in the cache: rows 2 and 3
    drafter.observe(1, StepOutcome([7, 40]))
    drafter.propose([1], [1])
    (read,) = graph.calls[-1]
    assert (list(read.tokens), read.past) == ([40], 3)


def test_what_an_earlier_request_has_left_is_not_read_again() -> None:
    graph, rows = Counting(), DrafterRows(range(4), 64)
    drafter = DraftModelDrafter(graph, 3)
    drafter.start(1, [5] * 90, rows)
    drafter.propose([1], [3])
    (read,) = graph.calls[0]
    assert (len(read.tokens), read.past, read.blocks) == (26, 64, range(4))
    assert rows.drafted == 90
    drafter.observe(1, StepOutcome([6, 40]))
    assert rows.drafted == 91, "6 was in the cache, and accepted"


def test_a_long_prompt_is_read_in_parts_and_no_part_is_a_single_token() -> None:
    graph = Counting()
    drafter = DraftModelDrafter(graph, 3)
    drafter.start(1, [5] * 1025)
    sizes = []
    for _ in range(3):
        drafter.propose([1], [1])
        sizes.append(len(graph.calls[-1][0].tokens))
    assert sizes == [512, 511, 2]
