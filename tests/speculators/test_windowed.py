"""Windowed self-drafting: which rows a draft reads, and that the output stays the target's own beyond the window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.attention_kernels import KernelName
from engine.request import GenerationRequest, SamplingParams
from engine.runner import SequenceInput
from speculators.outcome import StepOutcome
from speculators.target_access import TargetCopy, TargetInput
from speculators.windowed import Choice, WindowedSpeculator
from tests.engine.deployed import opened
from tests.engine.driving import generate, make_engine, prompt_of, run, submit
from tests.engine.tables import VOCABULARY, TableRunner
from tests.tiny import KERNELS, MAX_LENGTH, TinyTargets


class Target:
    """A `TargetAccess` that keeps what it is asked: after each token comes the next one, with a given share."""

    def __init__(self, computed: int, share: float = 0.99) -> None:
        self.block_size, self.vocab_size = 32, 50
        self.rows, self.share = computed, share
        self.inputs: list[TargetInput] = []

    def computed(self, request_id: int) -> int:
        return self.rows

    def run(self, batch: Sequence[TargetInput], copy: TargetCopy | None = None) -> NDArray[np.float32]:
        assert copy is None
        self.inputs += batch
        tokens = [token for item in batch for token in item.tokens[item.outputs_from :]]
        logits = np.full((len(tokens), self.vocab_size), np.log((1 - self.share) / 49), np.float32)
        for row, token in zip(logits, tokens, strict=True):
            row[(token + 1) % 50] = np.log(self.share)
        return logits


def drafted(target: Target, budget: int = 5, **settings: Any) -> tuple[int, ...]:
    """What is drafted after a context of the target's rows and one token, 7."""
    speculator = WindowedSpeculator(**{"min_context": 1, **settings})
    speculator.bind(target)
    speculator.start(0, [*([3] * target.rows), 7])
    (tree,) = speculator.propose([0], [budget])
    return tree.tokens


@pytest.mark.parametrize(
    ("computed", "window", "sinks", "places"),
    [
        (320, 128, 4, [0, 7, 8, 9, 10]),
        (330, 128, 4, [0, 8, 9, 10]),  # ten rows of the last block count
        (330, 128, 33, [0, 1, 9, 10]),
        (330, 128, 0, [7, 8, 9, 10]),
        (330, 1, 4, [0, 10]),
        (330, 4000, 4, [*range(11)]),
        (20, 128, 4, [0]),
    ],
)
def test_a_draft_reads_sinks_and_the_newest_rows(
    computed: int, window: int, sinks: int, places: list[int]
) -> None:
    target = Target(computed)
    tokens = drafted(target, window=window, sink_tokens=sinks, draft_length=3, adaptive=False)
    assert tokens == (8, 9, 10)
    for depth, item in enumerate(target.inputs):
        assert item.places == places and list(item.tokens) == [7 + depth]
        assert item.position == computed + depth
        assert item.past == (len(places) - 1) * 32 + computed % 32 + depth
        assert item.past - depth <= max(window, 64)


def test_a_draft_goes_over_the_end_of_a_block() -> None:
    target = Target(350)
    drafted(target, window=64, draft_length=5, adaptive=False)
    assert [item.places for item in target.inputs] == [[0, 10]] * 2 + [[0, 10, 11]] * 3
    assert [item.past for item in target.inputs] == [32 + 30 + depth for depth in range(5)]


@pytest.mark.parametrize(("share", "length"), [(0.99, 5), (0.7, 2), (0.3, 1)])
def test_a_draft_ends_where_it_is_no_longer_likely(share: float, length: int) -> None:
    assert len(drafted(Target(320, share), window=64, draft_length=5)) == length
    assert len(drafted(Target(320, share), window=64, draft_length=5, adaptive=False)) == 5
    assert len(drafted(Target(320, share), budget=2, window=64, adaptive=False)) == 2
    assert drafted(Target(320, share), budget=0) == ()


@pytest.mark.parametrize(("least", "drafts"), [(321, True), (322, False), (None, False)])
def test_shorter_contexts_are_not_drafted_for(least: int | None, drafts: bool) -> None:
    target = Target(320)
    assert bool(drafted(target, window=200, min_context=least)) == drafts == bool(target.inputs)


def test_guesses_of_a_lookup_are_run_at_once_and_kept_as_far_as_the_window_says_so() -> None:
    target = Target(320)
    speculator = WindowedSpeculator(draft_length=9, window=64, min_context=1, lookup=4, adaptive=False)
    speculator.bind(target)
    speculator.start(0, [*([3] * 312), 7, 8, 9, 10, 30, 31, 32, 6])  # 320 rows, and the newest token
    speculator.observe(0, StepOutcome([7]))
    (tree,) = speculator.propose([0], [9])
    assert tree.tokens == (8, 9, 10, 11, 12, 13, 14, 15, 16)
    first, second = target.inputs[:2]
    assert list(first.tokens) == [7, 8, 9, 10, 30] and first.position == 320
    assert list(second.tokens) == [11], "which nothing follows in the text"
    assert (second.past, second.position) == (first.past + 4, 324)
    assert len(target.inputs) == 1 + 5


@pytest.mark.parametrize(("setting", "value"), [("draft_length", 0), ("window", 0), ("lookup", -1)])
def test_settings_out_of_range_are_refused(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"windowed: {setting} is {value}"):
        WindowedSpeculator(**{setting: value})


def weighed(choice: Choice, *steps: tuple[Sequence[int], NDArray[np.float32] | None]) -> list[int]:
    """Blocks that are read after a prompt of 320 tokens, and after steps that emitted some and weighed blocks."""
    target = Target(320)
    speculator = WindowedSpeculator(draft_length=1, window=160, min_context=1, choice=choice)
    speculator.bind(target)
    speculator.start(0, [3] * 320)
    target.rows -= 1
    for emitted, weights in steps:
        speculator.observe(0, StepOutcome(emitted, block_weights=weights))
        target.rows += len(emitted)
    speculator.propose([0], [1])
    places = target.inputs[0].places
    assert places is not None and target.inputs[0].past <= 160
    return list(places)


def weights_of(**blocks: float) -> NDArray[np.float32]:
    weights = np.full(16, 0.01, np.float32)
    for name, value in blocks.items():
        weights[int(name[1:])] = value
    return weights


@pytest.mark.parametrize(
    ("choice", "first", "later"),
    [
        ("window", [0, 6, 7, 8, 9, 10], [0, 9, 10, 11, 12]),
        ("snapkv", [0, 2, 3, 7, 9, 10], [0, 3, 10, 11, 12]),
        ("verified", [0, 2, 3, 7, 9, 10], [0, 1, 10, 11, 12]),
    ],
)
def test_the_blocks_that_got_most_attention(choice: Choice, first: list[int], later: list[int]) -> None:
    at_the_end = [5], weights_of(b7=3, b2=2, b3=4, b4=1, b15=9)
    assert weighed(choice, at_the_end) == first
    on_and_on = [9] * 79, weights_of(b1=2, b6=1)
    assert weighed(choice, at_the_end, ([8], None), on_and_on) == later


WAYS: Sequence[Mapping[str, Any]] = [
    {"adaptive": False},
    {"lookup": 3, "draft_length": 8},
    {"sink_tokens": 0, "window": 33},
    {"choice": "snapkv", "window": 128, "adaptive": False},
    {"choice": "verified", "window": 128, "adaptive": False},
    {"choice": "verified", "window": 128, "lookup": 3, "draft_length": 20},
]


def test_a_runner_that_weighs_no_blocks_is_refused() -> None:
    runner = TableRunner()
    runner.most_weighed = 0
    make_engine(runner, WindowedSpeculator())
    with pytest.raises(ValueError, match="what attention blocks get; the runner does not tell"):
        make_engine(runner, WindowedSpeculator(choice="verified"))


def requests_of(vocabulary: int) -> list[GenerationRequest]:
    """Greedy and sampled; contexts within the window, across it and beyond it."""
    return [
        GenerationRequest(
            tuple(token % vocabulary for token in prompt_of(length)),
            60,
            SamplingParams(0.8 * (number % 2), seed=number),
        )
        for number, length in enumerate((3, 40, 100, 150, 196, 180))
    ]


@pytest.mark.parametrize("way", WAYS)
def test_on_tables_the_output_is_the_targets_own(way: Mapping[str, Any]) -> None:
    """The table's rows know all of their context, so stale ones would show."""
    runner = TableRunner()
    engine = make_engine(runner, WindowedSpeculator(**{"window": 64, "min_context": 1, **way}))
    requests = requests_of(VOCABULARY)
    assert [each.tokens for each in run(engine, requests)] == [
        generate(TableRunner(), each).tokens for each in requests
    ]
    assert (engine.statistics.tokens_per_step or 0) > 1.2
    drafts = [item for batch in runner.batches for item in batch if item.position is not None]
    assert (
        max(item.past for item in drafts) < way.get("window", 64) + 20
        and max(item.positions[0] for item in drafts) > 200
    )


@pytest.mark.parametrize(
    ("way", "kernel"),
    [(way, kernel) for way in WAYS for kernel in KERNELS if kernel == "native" or "choice" not in way],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_output_is_the_targets_own(
    way: Mapping[str, Any], precision: str, kernel: KernelName, tiny_targets: TinyTargets
) -> None:
    runner = tiny_targets.runner("llama", precision, kernel)
    requests = requests_of(265)
    engine = make_engine(
        runner, WindowedSpeculator(**{"window": 64, "min_context": 1, **way}), max_batch_size=4
    )
    assert [each.tokens for each in run(engine, requests)] == [
        generate(runner, each).tokens for each in requests
    ]
    statistics = engine.statistics
    assert statistics.accepted_tokens > 0
    if way.get("adaptive") is False:
        assert statistics.accepted_tokens < statistics.drafted_tokens, "windows are not always right"


@pytest.mark.skipif("native" not in KERNELS, reason="needs the kit's own kernel")
def test_a_real_target_says_what_its_blocks_get(tiny_targets: TinyTargets) -> None:
    """Of each request of a step its own; what a token gives away is one in every layer and head."""
    runner = tiny_targets.runner("llama", "fp32", "native")
    config = tiny_targets.weights("llama").architecture
    texts = [prompt_of(70), prompt_of(100, seed=1)]
    blocks = [[3, 1, 5], [2, 7, 4, 9]]
    prompts = [
        SequenceInput(text[:-3], 0, mine, is_prompt=True) for text, mine in zip(texts, blocks, strict=True)
    ]
    runner.forward(prompts)
    runner.forward(
        [
            SequenceInput(text[-3:], len(text) - 3, mine, weighed=True)
            for text, mine in zip(texts, blocks, strict=True)
        ]
    )
    found = [runner.block_weights(index) for index in range(2)]
    for weights, mine in zip(found, blocks, strict=True):
        assert len(weights) == len(mine) and (weights > 0).all()
        assert weights.sum() == pytest.approx(3 * config.num_heads * config.num_layers, rel=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_draft_leaves_behind_is_given_to_nobody(kernel: KernelName, tiny_targets: TinyTargets) -> None:
    """Rows that others take over are those of the verified text, whatever was drafted last."""
    runner = tiny_targets.runner("llama", "int8", kernel)
    engine = make_engine(runner, WindowedSpeculator(draft_length=7, window=32, min_context=1, adaptive=False))
    first = GenerationRequest(prompt_of(90), 60)
    written = submit(engine, first)
    while engine.step():
        pass
    longer = GenerationRequest((*first.prompt, *written.tokens, 5), 40)
    (outcome,) = run(engine, [longer])
    # On OpenVINO's kernel an answer's rows are of another kind than a prompt's.
    assert outcome.last.metrics.kv_reused_blocks == (4 if runner.one_kind_of_rows else 2)
    assert outcome.tokens == generate(runner, longer).tokens


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_deployment_of_it(kernel: KernelName, tiny_targets: TinyTargets, tmp_path: Path) -> None:
    section = {"method": "windowed", "window": 64, "min_context": 100, "lookup": 2}
    engine, runner = opened(section, tiny_targets, tmp_path, attention_kernel=kernel)
    requests = [GenerationRequest(prompt_of(length), MAX_LENGTH - length) for length in (90, 156, 220)]
    assert [each.tokens for each in run(engine, requests)] == [
        generate(runner, each).tokens for each in requests
    ]
    assert engine.statistics.accepted_tokens > 0
