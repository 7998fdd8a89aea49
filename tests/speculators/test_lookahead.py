"""Lookahead decoding: pool, window and both branches as published, and that the output stays the target's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from engine.attention_kernels import KernelName
from engine.request import GenerationRequest, SamplingParams
from engine.vllm.speculation import speculation_findings
from speculators.lookahead import LookaheadSpeculator, NgramPool, Window
from speculators.outcome import StepOutcome
from speculators.tree import EMPTY, ROOT, TokenTree
from tests.engine.deployed import deployment, opened
from tests.engine.driving import generate, make_engine, prompt_of, run
from tests.engine.tables import VOCABULARY, TableRunner, mixed
from tests.tiny import KERNELS, MAX_LENGTH, TinyTargets

Says = Callable[[Sequence[int]], int]
"""What a target says after a context."""


def says(context: Sequence[int]) -> int:
    """A target that looks at all that it sees, in order."""
    return mixed(*context) % 50


class Published:
    """The lookahead branch as the published code has it: rows of a matrix, and a mask (lade/decoding.py).

    ``rows[0]`` begins with W + N - 3 tokens, and loses one with every step; a token of row r in column j sees the
    current token, row 0 up to its own column, and the rows above it in its column.
    """

    def __init__(self, columns: int, ngram: int, start: Sequence[int]) -> None:
        self.columns, self.levels = columns, ngram - 1
        self.rows: list[list[int]] = [list(start)]

    def step(self, context: Sequence[int]) -> list[tuple[int, ...]]:
        """Run one step after a context, its current token included; the n-grams that are found."""
        current, first = context[-1], self.rows[0]
        filled = len(self.rows)
        heads = [current, *first]
        answers = []
        for column in range(len(heads)):
            below = [row[column] for row in self.rows[1:] if column < len(row)]
            answers.append(says([*context, *first[:column], *below]))
        if filled < self.levels:
            # The very first column hangs below the current token, whose answer is the text's.
            self.rows = [first[1:], *(row[1:] for row in self.rows[1:]), answers[1:]]
            return []
        found = [
            (heads[column], *(row[column] for row in self.rows[1:]), answers[column])
            for column in range(self.columns)
        ]
        self.rows = [*self.rows[1:], answers[: self.columns]]
        self.rows[0] = self.rows[0][1:]
        return found


@pytest.mark.parametrize(("columns", "ngram"), [(4, 3), (5, 5), (2, 2), (3, 2), (7, 7), (2, 9)])
def test_the_window_finds_what_the_published_algorithm_finds(columns: int, ngram: int) -> None:
    random = Random(columns)
    start = [random.randrange(50) for _ in range(columns + ngram - 3)]
    window, published = Window(columns, ngram, start), Published(columns, ngram, start)
    context = [random.randrange(50) for _ in range(9)]
    found = 0
    for step in range(4 * ngram):
        tokens, parents, ends = window.nodes()
        tree = TokenTree(tuple(tokens), tuple(parents), probes=len(tokens))
        assert len(tokens) <= (columns - 1) * (ngram - 1) + ngram - 2, "TensorRT-LLM's formula"
        answers = [says([*context, *path_of(tree, end)]) for end in ends]
        ngrams = window.advance(context[-1], answers)
        assert ngrams == published.step(context), f"step {step}"
        found += len(ngrams)
        context += [says(context), *(random.randrange(50) for _ in range(random.randrange(3)))]
    assert found == columns * (4 * ngram - max(0, ngram - 2))


def path_of(tree: TokenTree, node: int) -> list[int]:
    path: list[int] = []
    while node != ROOT:
        path.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return path


def test_the_pool_keeps_the_newest() -> None:
    pool = NgramPool(ngram=3, each=2, keys=2)
    pool.read([1, 2, 3, 1])
    assert pool.guesses(1) == [(2, 3)] and pool.guesses(2) == [(3, 1)] and pool.guesses(9) == []
    pool.add([1, 4, 5])
    assert pool.guesses(1) == [(4, 5), (2, 3)]
    pool.add([1, 2, 3])
    assert pool.guesses(1) == [(2, 3), (4, 5)], "what is found again is the newest"
    pool.add([1, 9, 9])
    assert pool.guesses(1) == [(9, 9), (2, 3)]
    pool.read([7])
    assert pool.guesses(3) == [(1, 7)], "the text goes on where it was"
    assert pool.guesses(2) == [], "n-grams of the token that was found least lately have made room"


def test_guesses_that_begin_alike_share_nodes_and_the_window_hangs_below_the_current_token() -> None:
    speculator = LookaheadSpeculator(window=3, ngram=3, verification_set=3)
    speculator.start(0, [5, 6, 7, 5, 6, 8, 5, 9, 9, 5])
    (tree,) = speculator.propose([0], [6])
    drafts = tree.truncate(tree.drafted)
    assert drafts == TokenTree((9, 9, 6, 8, 7), (ROOT, 0, ROOT, 2, 2))
    assert tree.probes == 3 and tree.parents[5:] == (ROOT, 5, 6)
    (short,) = speculator.propose([0], [3])
    assert short.tokens[: short.drafted] == (9, 9, 6) and short.tokens[3:] == tree.tokens[5:]
    assert speculator.propose([0], [0]) == [EMPTY]


def test_a_step_without_the_window_leaves_it_as_it_was() -> None:
    speculator = LookaheadSpeculator(window=3, ngram=3, verification_set=3)
    speculator.start(0, [5, 6, 7, 5])
    (tree,) = speculator.propose([0], [6])
    for other in (EMPTY, TokenTree.chain([3, 4]), tree.truncate(tree.drafted)):
        speculator.observe(0, StepOutcome([6], other, target_tokens=np.full((len(other) + 1, 1), 6)))
        speculator.observe(0, StepOutcome([5], EMPTY, target_tokens=np.array([[5]])))
        (again,) = speculator.propose([0], [6])
        assert again.tokens[again.drafted :] == tree.tokens[tree.drafted :]
    speculator.observe(0, StepOutcome([6], again, target_tokens=np.full((len(again) + 1, 1), 11)))
    (moved,) = speculator.propose([0], [6])
    assert moved.tokens[moved.drafted :] != tree.tokens[tree.drafted :] and 11 in moved.tokens


@pytest.mark.parametrize(("setting", "value"), [("window", 1), ("ngram", 1), ("verification_set", 0)])
def test_settings_out_of_range_are_refused(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"lookahead: {setting} is {value}"):
        LookaheadSpeculator(**{setting: value})


SECTION = {"method": "lookahead", "window": 5, "ngram": 4, "verification_set": 5}
SETTINGS = [{}, {"window": 7, "ngram": 5, "verification_set": 7}, {"window": 2, "ngram": 2}]


def requests_of(vocabulary: int, *lengths: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            tuple(token % vocabulary for token in prompt_of(length)),
            60,
            SamplingParams(0.8 * (number % 2), seed=number),
        )
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("settings", SETTINGS)
def test_on_tables_the_output_is_the_targets_own_and_guesses_are_accepted(settings: dict[str, int]) -> None:
    speculator = LookaheadSpeculator(**settings)
    engine = make_engine(TableRunner(), speculator)
    requests = requests_of(VOCABULARY, 1, 9, 40, 70, 2)
    assert [each.tokens for each in run(engine, requests)] == [
        generate(TableRunner(), each).tokens for each in requests
    ]
    assert (engine.statistics.tokens_per_step or 0) > 1.2


def test_the_window_finds_n_grams_that_are_not_in_the_text() -> None:
    """The text never repeats a token, but the window has been where it will be."""
    speculator = LookaheadSpeculator(window=6, ngram=4, verification_set=6)
    engine = make_engine(Ladder(), speculator)
    (outcome,) = run(engine, [GenerationRequest((0, 20, 13, 31, 26, 7), 40)])
    assert outcome.tokens == list(range(8, 48))
    assert engine.statistics.accepted_tokens > 8


class Ladder(TableRunner):
    """After each token comes the next one."""

    def _run(self, item):  # type: ignore[no-untyped-def]
        logits = super()._run(item)
        for row, token in zip(logits, item.tokens[item.logits_from :], strict=True):
            row[:] = 0
            row[(token + 1) % VOCABULARY] = 1
        return logits


def test_no_probe_stands_where_the_target_knows_no_position() -> None:
    runner = TableRunner(num_blocks=5)
    runner.max_sequence_length = 64
    engine = make_engine(
        runner, LookaheadSpeculator(window=9, ngram=5), max_sequence_length=64, max_batch_size=1
    )
    (request,) = requests_of(VOCABULARY, 30)
    (outcome,) = run(engine, [GenerationRequest(request.prompt, 34)])
    assert len(outcome.tokens) == 34
    positions = [max(item.positions) for batch in runner.batches for item in batch]
    assert max(positions) <= 63 and max(positions[:5]) > 30 + 8, "but all of them as long as there are"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_the_output_is_the_targets_own(
    settings: dict[str, int], precision: str, kernel: KernelName, tiny_targets: TinyTargets
) -> None:
    runner = tiny_targets.runner("llama", precision, kernel)
    requests = requests_of(265, 1, 12, 31, 90)
    engine = make_engine(runner, LookaheadSpeculator(**settings), max_sequence_length=200)
    assert [each.tokens for each in run(engine, requests)] == [
        generate(runner, each).tokens for each in requests
    ]
    assert engine.statistics.accepted_tokens > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_deployment_of_it(kernel: KernelName, tiny_targets: TinyTargets, tmp_path: Path) -> None:
    """Up to the last position of the longest request, in a full batch."""
    engine, runner = opened(SECTION, tiny_targets, tmp_path, attention_kernel=kernel)
    requests = [GenerationRequest(prompt_of(length), MAX_LENGTH - length) for length in (40, 156, 220)]
    assert [each.tokens for each in run(engine, requests)] == [
        generate(runner, each).tokens for each in requests
    ]
    assert engine.statistics.accepted_tokens > 0


def test_vllm_refuses_it_with_a_remedy() -> None:
    (finding,) = speculation_findings(deployment(SECTION).speculation)
    assert finding.remedy and "Jacobi window" in finding.reason
