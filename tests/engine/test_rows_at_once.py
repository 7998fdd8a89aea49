"""A row's bits do not show how many rows are computed at once: how many may be is measured, and steps are cut there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deployments.spec import DeploymentSpec
from engine.attention_kernels import Attention, KernelName
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_engine
from engine.manifest import EngineError
from engine.openvino_graphs import PagedGraph
from engine.planned import speculator_directories
from engine.rows_at_once import MOST_ROWS, cut, most_rows
from engine.runner import SequenceInput
from tests.engine.driving import prompt_of
from tests.runners import openvino_runner
from tests.tiny import BRANCH_BLOCKS, KERNELS, MAX_LENGTH, NUM_BLOCKS, THREADS, TinyTargets

BUCKETS = (2, 4, 8, 16)


@pytest.mark.parametrize(
    ("other_bits_from", "expected"),
    [(84, 80), (129, 128), (128, 112), (20, 16), (17, 16), (16, 8), (3, 2), (257, 256), (258, MOST_ROWS)],
)
def test_bits_that_change_with_the_number_of_rows_are_found(other_bits_from: int, expected: int) -> None:
    def first_row(rows: int) -> NDArray[np.float32]:
        other = np.nextafter(np.float32(2), np.float32(3))
        return np.array([1, np.nan, 2 if rows < other_bits_from else other], np.float32)

    assert most_rows(first_row, BUCKETS) == expected


def test_no_more_rows_are_asked_for_than_there_is_room_for() -> None:
    asked: list[int] = []

    def first_row(rows: int) -> NDArray[np.float32]:
        asked.append(rows)
        return np.zeros(1, np.float32)

    assert most_rows(first_row, BUCKETS, room=100) == 100 == max(asked)


def item(tokens: int, kind: str) -> SequenceInput:
    return SequenceInput(
        list(range(tokens)),
        7,
        range(100),
        is_prompt=kind == "prompt",
        parents=[max(0, token - 2) for token in range(tokens)] if kind == "tree" else None,
        logits_from=tokens // 2,
        position=3 if kind == "window" else None,
        weighed=kind == "weighed",
    )


ITEMS = st.lists(
    st.builds(item, st.integers(2, 90), st.sampled_from(["prompt", "chain", "tree", "window", "weighed"])),
    min_size=1,
    max_size=6,
)


@given(ITEMS, st.integers(1, 80))
def test_a_step_is_cut_into_parts_that_are_small_enough_and_make_it_up(
    batch: list[SequenceInput], most: int
) -> None:
    parts = cut(batch, most)
    assert all(parts), "no part is empty"
    for part in parts:
        rows = sum(len(each.tokens) for _, each in part)
        assert rows <= max(most, 3) or (len(part) == 1 and (part[0][1].parents or part[0][1].weighed))
    placed = [pair for part in parts for pair in part]
    assert [index for index, _ in placed] == sorted(index for index, _ in placed)
    for index, whole in enumerate(batch):
        pieces = [piece for at, piece in placed if at == index]
        if not whole.is_prompt and len(whole.tokens) <= max(most, 3):
            assert pieces == [whole]
        assert all(len(piece.tokens) > 1 for piece in pieces)
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens
        assert [place for piece in pieces for place in piece.positions] == list(whole.positions)
        assert [piece.past for piece in pieces] == [
            whole.past + sum(len(each.tokens) for each in pieces[:number]) for number in range(len(pieces))
        ]
        wanted = [token for piece in pieces for token in piece.tokens[piece.logits_from :]]
        assert wanted == whole.tokens[whole.logits_from :]


def runners(targets: TinyTargets, kernel: KernelName, most: int) -> tuple[CompiledRunner, CompiledRunner]:
    """One that computes all rows of a step at once, and one that computes fewer than `most`."""
    whole, parts = (
        openvino_runner(
            targets.engine("llama", "fp32"),
            num_blocks=NUM_BLOCKS,
            threads=THREADS,
            hidden_layers=(0, -1),
            branch_blocks=BRANCH_BLOCKS,
            attention=Attention(kernel),
        )
        for _ in range(2)
    )
    assert isinstance(whole.graph, PagedGraph) and whole.graph.most_rows > 100
    assert isinstance(parts.graph, PagedGraph)
    parts.graph.most_rows = most
    return whole, parts


@pytest.mark.parametrize("kernel", KERNELS)
def test_steps_that_are_cut_give_what_whole_ones_give(kernel: KernelName, tiny_targets: TinyTargets) -> None:
    """Prompts, chains and trees of several requests; logits, hidden states, and the path that is kept."""
    whole, parts = runners(tiny_targets, kernel, 7)
    each = 3

    def blocks(request: int) -> range:
        return range(request * each, (request + 1) * each)

    def same(batch: Sequence[SequenceInput]) -> None:
        expected, found = whole.forward(batch).copy(), parts.forward(batch)
        assert np.array_equal(expected, found)
        assert np.array_equal(whole.hidden(), parts.hidden())

    texts = [prompt_of(20, seed) for seed in range(3)]
    same(
        [
            SequenceInput(text, 0, blocks(request), is_prompt=True, logits_from=17)
            for request, text in enumerate(texts)
        ]
    )
    parents = [-1, 0, 0, 1, 2, 2]
    tree = SequenceInput([5, 6, 7, 8, 9, 10], 20, blocks(1), parents=parents)
    other = SequenceInput([11, 12, 13, 14], 20, blocks(2), parents=[-1, 0, 0, 2])
    same([SequenceInput(list(range(40, 52)), 20, blocks(0)), tree, other])
    for runner in (whole, parts):
        runner.commit(0, range(12))
        runner.commit(1, [0, 2, 5])
        runner.commit(2, [0, 2, 3])
    same(
        [
            SequenceInput([21], 32, blocks(0)),
            SequenceInput([22], 23, blocks(1)),
            SequenceInput([23], 23, blocks(2)),
        ]
    )


def test_what_blocks_are_worth_is_told_of_each_part(tiny_targets: TinyTargets) -> None:
    if "native" not in KERNELS:
        pytest.skip("OpenVINO's kernel does not tell")
    whole, parts = runners(tiny_targets, "native", 6)
    for runner in (whole, parts):
        for request in range(2):
            text = prompt_of(20, request)
            runner.forward([SequenceInput(text, 0, range(request * 3, request * 3 + 3), is_prompt=True)])
    step = [
        SequenceInput([1, 2, 3, 4], 20, range(request * 3, request * 3 + 3), weighed=True)
        for request in range(2)
    ]
    for runner in (whole, parts):
        runner.forward(step)
    for request in range(2):
        weights = parts.block_weights(request)
        assert weights.sum() > 0 and np.array_equal(weights, whole.block_weights(request))


@pytest.mark.parametrize(("other_bits_from", "opens"), [(100, False), (130, True)])
def test_trees_among_whose_rows_bits_change_are_refused(
    other_bits_from: int, opens: bool, tiny_targets: TinyTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lookahead's tree of 120 rows; a processor whose products are others from a number of rows on."""
    first_row = PagedGraph._first_row

    def elsewhere(graph: PagedGraph, rows: int) -> NDArray[np.float32]:
        row = first_row(graph, rows)
        return np.nextafter(row, np.float32(np.inf)) if rows >= other_bits_from else row

    monkeypatch.setattr(PagedGraph, "_first_row", elsewhere)
    lookahead = {"method": "lookahead", "window": 15, "ngram": 5, "verification_set": 15}
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": tiny_targets.source("llama")},
            "engine": {
                "max_batch_size": 1,
                "max_sequence_length": MAX_LENGTH,
                "threads": THREADS,
                "precision": "fp32",
            },
            "speculation": lookahead,
        }
    )
    directories = speculator_directories(spec)
    if opens:
        _, runner = open_engine(spec, tiny_targets.engine("llama", "fp32"), directories)
        assert runner.keeps_bits(120) and not runner.keeps_bits(140)
        return
    with pytest.raises(EngineError, match=r"trees of up to 120 tokens.*draft trees of at most 98 tokens"):
        open_engine(spec, tiny_targets.engine("llama", "fp32"), directories)
