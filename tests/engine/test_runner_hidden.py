"""Hidden states: those of the reference model, and whoever asks for them changes no bit of the logits."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.compiled_runner import CompiledRunner
from engine.manifest import EngineError
from engine.runner import SequenceInput
from tests.reference_model import hidden_states
from tests.runners import openvino_runner
from tests.tiny import FULL_SIZE, NUM_BLOCKS, THREADS, TinyTargets

BLOCKS = (7, 3, 5)
LENGTH = 60


def steps(tokens: list[int]) -> Iterator[SequenceInput]:
    """All tokens: a prompt in two chunks, a chain, single tokens."""
    past = 0
    for length, is_prompt in ((31, True), (10, True), (9, False), *[(1, False)] * 10):
        yield SequenceInput(tokens[past : past + length], past, BLOCKS, is_prompt=is_prompt)
        past += length


def hidden_of(runner: CompiledRunner, item: SequenceInput) -> NDArray[np.float32]:
    runner.forward([item])
    return runner.hidden()[: len(item.tokens)]


@pytest.mark.parametrize("variant", ["llama", "qwen3", "granite", "smollm3"])
def test_they_are_those_of_the_reference(variant: str, tiny_targets: TinyTargets) -> None:
    weights = tiny_targets.weights(variant)
    layers = weights.architecture.num_layers
    runner = openvino_runner(
        tiny_targets.engine(variant, "fp32"),
        num_blocks=NUM_BLOCKS,
        threads=THREADS,
        hidden_layers=(0, layers - 1, -1, layers),
    )
    tokens = np.random.default_rng(3).integers(0, runner.vocab_size, LENGTH).tolist()
    found = np.concatenate([hidden_of(runner, item) for item in steps(tokens)])
    expected = hidden_states(weights.architecture, weights, tokens)
    for index, layer in enumerate((0, layers - 1, -1, -1)):
        np.testing.assert_allclose(found[:, index], expected[layer], atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("variant", ["llama", "qwen3", FULL_SIZE])
@pytest.mark.parametrize("layers", [(-1,), (0, 1), (1, 2)])
def test_asking_for_them_changes_no_bit_of_the_logits(
    layers: tuple[int, ...], variant: str, precision: str, tiny_targets: TinyTargets
) -> None:
    directory = tiny_targets.engine(variant, precision)
    plain, asked = (
        openvino_runner(directory, num_blocks=8, threads=THREADS, hidden_layers=wanted)
        for wanted in ((), layers)
    )
    tokens = np.random.default_rng(3).integers(0, plain.vocab_size, LENGTH).tolist()
    for item in steps(tokens):
        np.testing.assert_array_equal(asked.forward([item]), plain.forward([item]))


def test_a_layer_that_does_not_exist_is_refused(tiny_targets: TinyTargets) -> None:
    with pytest.raises(EngineError, match="no hidden states 9; it has 0 to"):
        openvino_runner(tiny_targets.engine("llama", "fp32"), num_blocks=8, hidden_layers=(9,))
