"""Token trees with branches: a node's logits are those of its path, and the accepted path is what stays."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.openvino_runner import OpenVinoRunner
from engine.runner import SequenceInput
from speculators.tree import ROOT, TokenTree
from tests.reference_model import forward
from tests.tiny import TinyTargets

TOLERANCE = 1e-4
ROOT_TOKEN, NEXT_TOKEN = 77, 99
TREE_BLOCKS, PATH_BLOCKS = (9, 4, 6, 1), (10, 11, 12, 13)
VARIANTS = ["llama", "qwen2", "qwen3", "granite", "smollm3", "mistral"]


def path_to(tree: TokenTree, node: int) -> list[int]:
    """Nodes from the root's child down to `node`."""
    path: list[int] = []
    while node != ROOT:
        path.insert(0, node)
        node = tree.parents[node]
    return path


def read_prompt(runner: OpenVinoRunner, prompt: list[int], blocks: tuple[int, ...]) -> None:
    runner.forward([SequenceInput(prompt, 0, blocks, is_prompt=True, logits_from=len(prompt))])


def run_tree(runner: OpenVinoRunner, tree: TokenTree, past: int) -> NDArray[np.float32]:
    tokens = (ROOT_TOKEN, *tree.tokens)
    mask, depths = tree.ancestor_mask(), (0, *tree.depths)
    return runner.forward([SequenceInput(tokens, past, TREE_BLOCKS, depths=depths, mask=mask)]).copy()


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    size = draw(st.integers(1, 16))
    parents = tuple(draw(st.integers(ROOT, node - 1)) for node in range(size))
    return TokenTree(tuple(draw(st.integers(0, 264)) for _ in range(size)), parents)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(tree=trees(), length=st.integers(1, 70))
def test_every_node_sees_its_path_alone(
    variant: str, tree: TokenTree, length: int, tiny_targets: TinyTargets
) -> None:
    weights, runner = tiny_targets.weights(variant), tiny_targets.runner(variant, "fp32")
    prompt = np.random.default_rng(length).integers(0, 265, length).tolist()
    read_prompt(runner, prompt, TREE_BLOCKS)
    found = run_tree(runner, tree, length)
    everything = [*prompt, ROOT_TOKEN, *tree.tokens]
    allowed = np.tri(len(everything), dtype=bool)
    allowed[length:, length:] = tree.ancestor_mask()
    positions = [*range(length), *(length + depth for depth in (0, *tree.depths))]
    expected = forward(weights.architecture, weights, everything, allowed=allowed, positions=positions)
    np.testing.assert_allclose(found, expected[length:], atol=TOLERANCE)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TOLERANCE), ("int8", 0.1)])
@pytest.mark.parametrize("length", [6, 31, 60])
def test_node_and_path_agree_on_the_engine(
    precision: str, tolerance: float, length: int, tiny_targets: TinyTargets
) -> None:
    """In int8 a difference in the last bit can move an activation to the next of its 255 values."""
    runner = tiny_targets.runner("llama", precision)
    prompt = np.random.default_rng(length).integers(0, 265, length).tolist()
    tree = TokenTree((5, 6, 7, 8, 9, 10, 11, 5), (ROOT, ROOT, 0, 0, 1, 2, 5, 6))
    read_prompt(runner, prompt, TREE_BLOCKS)
    found = run_tree(runner, tree, length)
    for node in range(len(tree)):
        read_prompt(runner, prompt, PATH_BLOCKS)
        tokens = [ROOT_TOKEN, *(tree.tokens[index] for index in path_to(tree, node))]
        alone = runner.forward([SequenceInput(tokens, length, PATH_BLOCKS)])
        np.testing.assert_allclose(found[node + 1], alone[-1], atol=tolerance)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(tree=trees(), length=st.integers(1, 70), data=st.data())
def test_commit_keeps_the_accepted_path_and_nothing_else(
    tree: TokenTree, length: int, data: st.DataObject, tiny_targets: TinyTargets
) -> None:
    weights, runner = tiny_targets.weights("llama"), tiny_targets.runner("llama", "fp32")
    prompt = np.random.default_rng(length).integers(0, 265, length).tolist()
    path = path_to(tree, data.draw(st.integers(ROOT, len(tree) - 1), label="last accepted node"))
    read_prompt(runner, prompt, TREE_BLOCKS)
    run_tree(runner, tree, length)
    runner.commit(TREE_BLOCKS, length, (0, *(node + 1 for node in path)))
    kept = [ROOT_TOKEN, *(tree.tokens[node] for node in path)]
    found = runner.forward([SequenceInput([NEXT_TOKEN], length + len(kept), TREE_BLOCKS)])
    expected = forward(weights.architecture, weights, [*prompt, *kept, NEXT_TOKEN])
    np.testing.assert_allclose(found, expected[-1:], atol=TOLERANCE)


def test_trees_and_chains_share_a_step(tiny_targets: TinyTargets) -> None:
    runner = tiny_targets.runner("llama", "fp32")
    tree = TokenTree((5, 6, 7), (ROOT, ROOT, 0))
    read_prompt(runner, [1, 2, 3], TREE_BLOCKS)
    read_prompt(runner, [4, 5], PATH_BLOCKS)
    alone, chain = run_tree(runner, tree, 3), SequenceInput([8, 9], 2, PATH_BLOCKS)
    expected = runner.forward([chain]).copy()
    mask = tree.ancestor_mask()
    branched = SequenceInput((ROOT_TOKEN, *tree.tokens), 3, TREE_BLOCKS, depths=(0, *tree.depths), mask=mask)
    again = SequenceInput((ROOT_TOKEN, *tree.tokens), 3, (20,), depths=(0, *tree.depths), mask=mask)
    read_prompt(runner, [1, 2, 3], (20,))
    together = runner.forward([chain, branched, chain, again])
    np.testing.assert_array_equal(together[:2], expected)
    np.testing.assert_array_equal(together[6:8], expected)
    np.testing.assert_allclose(together[2:6], alone, atol=TOLERANCE)
    np.testing.assert_allclose(together[8:], alone, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("variant", "takes"), [("llama", True), ("mistral window 9", False), ("mistral window 200", False)]
)
def test_only_models_without_a_binding_window_take_branches(
    variant: str, takes: bool, tiny_targets: TinyTargets
) -> None:
    assert tiny_targets.runner(variant, "fp32").takes_branches is takes
