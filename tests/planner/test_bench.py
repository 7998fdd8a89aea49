"""`drafthouse bench` measures every subject in every round and computes from what it recorded."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from build.compile import compile_engine
from build.targets.architecture import Architecture
from deployments.engines import EmbeddedEngine
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_runner
from engine.runner import SequenceInput
from planner.bench.measure import BATCHES, TOKENS, BenchResult, VerificationStep, fill_cache, run_bench
from planner.bench.table import step_table, throughput_table
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.tiny import refuse_openvino

PEER = "peer, batch 1, tokens/s"


@pytest.fixture(scope="module")
def engine_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny engine that is just long enough."""
    root = tmp_path_factory.mktemp("bench")
    config = tiny_config("llama", head_dim=32, max_position_embeddings=384)
    source = write_huggingface(root / "source", config, random_weights(Architecture.from_config(config)))
    compile_engine(source, root / "tiny", precision="int8", max_sequence_length=384)
    return root / "tiny"


@pytest.fixture(scope="module")
def result(engine_directory: Path) -> BenchResult:
    """Two rounds, beside a peer whose figures are known."""
    peer = iter([1.0, 10.0, 30.0])
    return run_bench(engine_directory, others={PEER: lambda: next(peer)}, rounds=2)


def test_every_subject_is_measured_in_every_round(result: BenchResult) -> None:
    expected = {f"{count} token{'s' * (count > 1)}" for count in TOKENS}
    expected |= {f"batch {batch}" for batch in BATCHES[1:]} | {"bandwidth GB/s", PEER}
    expected |= {f"engine, batch {batch}, tokens/s" for batch in (1, 8)}
    assert set(result.rounds) == expected
    for figures in result.rounds.values():
        assert len(figures) == 2 and all(figure > 0 for figure in figures)


def test_steps_look_at_memory_that_was_written(engine_directory: Path) -> None:
    """Each page of every block that they read, without reading a prompt; a page holds eight rows and more."""
    runner = open_runner(EmbeddedEngine(), engine_directory, num_blocks=64)
    written: set[tuple[int, int]] = set()
    rows = 0

    class Watched:
        block_size, vocab_size = runner.block_size, runner.vocab_size

        def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
            nonlocal rows
            rows += sum(len(sequence.tokens) for sequence in batch)
            written.update((sequence.blocks[0], sequence.past // 8) for sequence in batch)
            return runner.forward(batch)

    context, watched = 300, cast(CompiledRunner, Watched())
    fill_cache(watched, range(3), context)
    step = VerificationStep(watched, 3, 4, context, context)
    read = {block for sequence in step.batch for block in sequence.blocks}
    assert {(block, page) for block in read for page in range(runner.block_size // 8)} <= written
    assert rows < 3 * context / 4
    assert step() > 0


def test_the_first_round_warms_up(result: BenchResult) -> None:
    assert result.rounds[PEER] == [10.0, 30.0]
    assert (result.median(PEER), result.spread(PEER)) == (20.0, (10.0, 30.0))


def test_ratios_are_taken_within_a_round() -> None:
    """Figures that drift together keep their ratio."""
    result = BenchResult("e", 10**6, {"a": [2.0, 20.0, 8.0], "b": [1.0, 10.0, 2.0], "bandwidth GB/s": [2.0]})
    assert result.ratio("a", "b") == 2.0
    assert result.bound_ms == pytest.approx(0.5)


def test_the_json_document_has_the_raw_figures(result: BenchResult) -> None:
    text = result.to_json()
    content = json.loads(text)
    assert "\n" not in text
    assert content["rounds"][PEER] == [10.0, 30.0]
    assert content["bound_ms"] == pytest.approx(result.bound_ms, abs=1e-3)
    assert content["weight_bytes"] == result.weight_bytes > 100_000
    assert content["environment"]["engine_versions"]["openvino"]


def test_the_tables_show_every_subject(result: BenchResult) -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(step_table(result))
    console.print(throughput_table(result))
    text = console.export_text()
    for name in result.rounds:
        assert name == "bandwidth GB/s" or name.removesuffix(", tokens/s") in text
    assert "memory bound" in text


@pytest.mark.torch
def test_the_backend_of_the_spec_is_measured(engine_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_openvino(monkeypatch)
    monkeypatch.setattr("planner.bench.measure._REPEATS", 1)
    monkeypatch.setattr("planner.bench.measure._GENERATED", 8)
    engine = EmbeddedEngine(backend="torch")
    assert run_bench(engine_directory, others={}, rounds=1, engine=engine).environment["backend"] == "torch"
