"""Low-bit self-drafting: what is drafted on whose cache, and that the output stays that of full precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from build.compile import compile_engine
from build.drafters import compile_speculator
from deployments.speculation import LowBit
from engine.attention_kernels import Attention, KernelName
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_engine
from engine.drafters import prepare
from engine.engine import Engine
from engine.manifest import EngineError, load_manifest, load_speculator_manifest
from engine.openvino_graphs import OpenVinoBackend
from engine.request import GenerationRequest, SamplingParams
from engine.runner import SequenceInput
from engine.target_copy import CompiledCopy
from speculators.low_bit import LowBitSpeculator
from speculators.outcome import StepOutcome
from speculators.target_access import TargetCopy, TargetInput
from tests.engine.cache_rows import cache_row
from tests.engine.deployed import deployment
from tests.engine.driving import generate, make_engine, prompt_of, run, submit
from tests.runners import openvino_runner
from tests.tiny import KERNELS, MAX_LENGTH, NUM_BLOCKS, THREADS, TinyTargets

SECTION = LowBit(method="low_bit", draft_length=5)
VARIANT = "llama"


class Nothing:
    """A copy that nobody may call but the target."""

    def forward(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        raise AssertionError("copies are run by the target's access")


class Target:
    """A `TargetAccess` that keeps what it is asked: after each token comes the next one."""

    def __init__(self, copy: TargetCopy, rows: Sequence[int]) -> None:
        self.block_size, self.vocab_size = 32, 50
        self.copy, self.rows = copy, rows
        self.batches: list[Sequence[TargetInput]] = []

    def computed(self, request_id: int) -> int:
        return self.rows[request_id]

    def run(self, batch: Sequence[TargetInput], copy: TargetCopy | None = None) -> NDArray[np.float32]:
        assert copy is self.copy
        self.batches.append(batch)
        tokens = [token for item in batch for token in item.tokens]
        logits = np.zeros((len(tokens), 50), np.float32)
        logits[range(len(tokens)), [(token + 1) % 50 for token in tokens]] = 1
        return logits


def on_target(draft_length: int) -> tuple[LowBitSpeculator, Target]:
    """A speculator with two requests, of 40 computed rows and a token 7, and of 63 and 20."""
    copy = Nothing()
    speculator, target = LowBitSpeculator(copy, draft_length), Target(copy, (40, 63))
    speculator.bind(target)
    speculator.start(0, [*([3] * 40), 7])
    speculator.start(1, [*([4] * 63), 20])
    return speculator, target


def test_requests_draft_side_by_side_behind_the_rows_that_stand() -> None:
    speculator, target = on_target(4)
    trees = speculator.propose([0, 1], [9, 2])
    assert [tree.tokens for tree in trees] == [(8, 9, 10, 11), (21, 22)]
    assert [[item.request_id for item in batch] for batch in target.batches] == [[0, 1], [0, 1], [0], [0]]
    for depth, batch in enumerate(target.batches):
        for item in batch:
            first = (40, 63)[item.request_id] + depth
            assert (list(item.tokens), item.past, item.position, item.places) == (
                [(7, 20)[item.request_id] + depth],
                first,
                first,
                None,
            )
    assert [tree.tokens for tree in speculator.propose([1, 0], [0, 0])] == [(), ()]


def test_a_draft_goes_on_from_what_was_emitted_last() -> None:
    speculator, _ = on_target(2)
    speculator.observe(0, StepOutcome([30, 31]))
    speculator.observe(0, StepOutcome([]))  # a part of a prompt
    assert [tree.tokens for tree in speculator.propose([0, 1], [2, 2])] == [(32, 33), (21, 22)]


@dataclass
class Deployed:
    """A tiny target and its copy in four bits."""

    runner: CompiledRunner
    directory: Path
    copy: CompiledCopy

    def engine(self, draft_length: int = 5, *, adaptive: bool = False) -> Engine:
        speculator = LowBitSpeculator(self.copy, draft_length)
        return make_engine(self.runner, speculator, max_batch_size=4, adaptive_drafts=adaptive)


def compiled(source: Path, directory: Path) -> str:
    """Compile the copy and return the last line that was reported."""
    lines = [""]
    compile_speculator(
        *(SECTION, directory),
        target=source,
        precision="int4",
        max_sequence_length=MAX_LENGTH,
        report=lines.append,
    )
    return lines[-1]


def beside(
    targets: TinyTargets, runner: CompiledRunner, directory: Path, variant: str = VARIANT
) -> CompiledCopy:
    """A variant in four bits over a runner's cache."""
    compiled(targets.source(variant), directory)
    manifest = load_speculator_manifest(directory)
    return CompiledCopy(directory / manifest.graphs[0], manifest, OpenVinoBackend(THREADS), runner)


PLACES = [(precision, kernel) for precision in ("fp32", "int8") for kernel in KERNELS]


@pytest.fixture(params=PLACES, ids=[" ".join(place) for place in PLACES])
def deployed(request: pytest.FixtureRequest, tiny_targets: TinyTargets, tmp_path: Path) -> Deployed:
    precision, kernel = request.param
    runner = tiny_targets.runner(VARIANT, precision, kernel)
    return Deployed(runner, tmp_path / "copy", beside(tiny_targets, runner, tmp_path / "copy"))


def caches_of(network: Any) -> NDArray[np.generic]:
    """The memory of a network's cache."""
    kernel = network.graph.kernel
    found: NDArray[np.generic] = kernel.cache.memory if kernel.name == "native" else kernel.caches
    return found


def test_there_is_no_second_cache(deployed: Deployed) -> None:
    assert caches_of(deployed.copy) is caches_of(deployed.runner)
    assert deployed.copy.graph.attention == deployed.runner.graph.attention


def test_what_is_drafted_is_what_a_four_bit_engine_says_on_the_targets_rows(
    deployed: Deployed, tiny_targets: TinyTargets
) -> None:
    """Bit for bit: an engine of int4 that is given a copy of the target's cache, rows of the prompt in it."""
    runner, copy = deployed.runner, deployed.copy
    attention = runner.graph.attention
    alone = openvino_runner(
        tiny_targets.engine(VARIANT, "int4"),
        num_blocks=NUM_BLOCKS,
        threads=THREADS,
        branch_blocks=128,
        attention=Attention(attention["kernel"], attention["kv_cache_precision"]),  # type: ignore[arg-type]
    )
    prompt, blocks = prompt_of(45), [3, 1]
    runner.forward([SequenceInput(prompt[:-1], 0, blocks, is_prompt=True)])
    caches_of(alone)[:] = caches_of(runner)
    token = prompt[-1]
    for row in range(44, 60):
        item = SequenceInput([token], row, blocks)
        found, expected = copy.forward([item]).copy(), alone.forward([item])
        np.testing.assert_array_equal(found, expected)
        token = int(expected[0].argmax())
    np.testing.assert_array_equal(caches_of(runner), caches_of(alone))


def requests_of() -> list[GenerationRequest]:
    """Greedy and sampled, over several blocks."""
    return [
        GenerationRequest(prompt_of(length), most, SamplingParams(0.8 * (number % 2), seed=number))
        for number, (length, most) in enumerate([(3, 60), (31, 40), (64, 2), (100, 60), (150, 50), (40, 70)])
    ]


@pytest.mark.parametrize("settings", [{}, {"adaptive": True, "draft_length": 9}, {"draft_length": 1}])
def test_the_output_is_that_of_full_precision(settings: dict[str, Any], deployed: Deployed) -> None:
    engine, requests = deployed.engine(**settings), requests_of()
    assert [each.tokens for each in run(engine, requests)] == [
        generate(deployed.runner, each).tokens for each in requests
    ]
    assert 0 < engine.statistics.accepted_tokens < engine.statistics.drafted_tokens


def test_the_rows_that_stay_are_those_of_full_precision(deployed: Deployed) -> None:
    """Keys and values that a draft leaves behind are overwritten before anybody reads them."""
    request = GenerationRequest(prompt_of(50), 70)
    graph: Any = deployed.runner.graph

    def rows(engine: Engine) -> list[NDArray[np.generic]]:
        outcome = submit(engine, request)
        while len(outcome.tokens) < 60:
            engine.step()
        (item,) = engine._scheduler.running.values()
        found = [cache_row(graph.kernel, item.blocks[row // 32], row % 32).copy() for row in range(50, 100)]
        engine.cancel(item.id)
        return found

    for drafted, plain in zip(
        rows(deployed.engine()), rows(make_engine(deployed.runner, max_batch_size=4)), strict=True
    ):
        np.testing.assert_array_equal(drafted, plain)


def test_what_a_draft_leaves_behind_is_given_to_nobody(deployed: Deployed) -> None:
    """Requests that take over rows of an ended one take those of the verified text."""
    engine, first = deployed.engine(draft_length=9), GenerationRequest(prompt_of(90), 60)
    written = submit(engine, first)
    while engine.step():
        pass
    longer = GenerationRequest((*first.prompt, *written.tokens, 5), 40)
    (outcome,) = run(engine, [longer])
    assert outcome.last.metrics.kv_reused_blocks >= 2
    assert outcome.tokens == generate(deployed.runner, longer).tokens


def test_a_copy_of_another_target_is_refused(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    compiled(tiny_targets.source("llama tied"), tmp_path / "copy")
    target = load_manifest(tiny_targets.engine(VARIANT, "fp32"))
    with pytest.raises(
        EngineError, match=r"compiled with the target llama-tied of hash \w+, this one is llama of"
    ):
        prepare(SECTION, tmp_path / "copy", target=target, slots=2, max_sequence_length=MAX_LENGTH)


def test_graphs_of_another_method_or_of_shorter_requests_are_refused(
    tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    compiled(tiny_targets.source(VARIANT), tmp_path / "copy")
    target = load_manifest(tiny_targets.engine(VARIANT, "fp32"))
    with pytest.raises(EngineError, match="compiled for 256 tokens, the spec asks for 300"):
        prepare(SECTION, tmp_path / "copy", target=target, slots=2, max_sequence_length=300)
    path = tmp_path / "copy" / "speculator.json"
    path.write_text(path.read_text().replace('"low_bit"', '"medusa"'))
    with pytest.raises(EngineError, match="of method medusa, the spec asks for low_bit"):
        prepare(SECTION, tmp_path / "copy", target=target, slots=2, max_sequence_length=MAX_LENGTH)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("variant", ["llama of 8 layers", "llama one kv head", "llama heads of 64"])
def test_a_cache_that_is_laid_out_otherwise_is_refused(
    variant: str, kernel: KernelName, tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    runner = tiny_targets.runner(VARIANT, "fp32", kernel)
    with pytest.raises(EngineError, match=r"a network with a cache of .* cannot use one of"):
        beside(tiny_targets, runner, tmp_path / "copy", variant)


def test_what_is_there_already_is_not_compiled_again(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    assert not compiled(tiny_targets.source(VARIANT), directory).endswith("up to date")
    assert compiled(tiny_targets.source(VARIANT), directory).endswith("up to date")
    manifest, target = (
        load_speculator_manifest(directory),
        load_manifest(tiny_targets.engine(VARIANT, "fp32")),
    )
    assert manifest.source_sha256 == manifest.target_sha256 == target.source_sha256
    assert (manifest.precision, manifest.max_sequence_length) == ("int4", MAX_LENGTH)
    assert not compiled(tiny_targets.source("llama tied"), directory).endswith("up to date")


@pytest.mark.torch
def test_pytorch_says_that_it_shares_no_cache(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    from engine.torch_graphs import TorchBackend

    runner = tiny_targets.runner(VARIANT, "fp32")
    compiled(tiny_targets.source(VARIANT), tmp_path / "copy")
    (prepared,) = prepare(
        SECTION, tmp_path / "copy", target=runner.manifest, slots=2, max_sequence_length=MAX_LENGTH
    )
    with pytest.raises(EngineError, match=r"share a KV cache run on engine\.backend: openvino alone"):
        prepared.open(TorchBackend(), runner)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_deployment_of_it(kernel: KernelName, tiny_targets: TinyTargets, tmp_path: Path) -> None:
    spec = deployment(
        {"method": "low_bit", "draft_length": 3},
        tiny_targets.source(VARIANT),
        precision="fp32",
        attention_kernel=kernel,
    )
    copy, engine_directory = tmp_path / "copy", tmp_path / "engine"
    compile_engine(spec.target.model, engine_directory, precision="fp32", max_sequence_length=MAX_LENGTH)
    compiled(spec.target.model, copy)
    engine, runner = open_engine(spec, engine_directory, {spec.name: copy})
    requests = [replace(request, max_tokens=30) for request in requests_of()]
    assert [each.tokens for each in run(engine, requests)] == [
        generate(runner, each).tokens for each in requests
    ]
    assert engine.statistics.accepted_tokens > 0
