"""Token trees: a node's logits are those of its path, bit for bit, and the accepted path is what stays."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.attention_kernels import Attention, KernelName
from engine.compiled_runner import CompiledRunner
from engine.runner import SequenceInput
from speculators.tree import ROOT, TokenTree
from tests.reference_model import forward
from tests.runners import openvino_runner
from tests.tiny import FULL_SIZE, KERNELS, NUM_BLOCKS, SEVERAL_THREADS, THREADS, TinyTargets

TOLERANCE = 1e-4
ROOT_TOKEN, NEXT_TOKEN = 77, 99
TREE_BLOCKS, PATH_BLOCKS = (9, 4, 6, 1), (10, 11, 12, 13)
VARIANTS = ["llama", "qwen2", "qwen3", "granite", "smollm3", "mistral", "gemma3_text"]
EXACT = [
    (variant, precision, kernel)
    for variant in ("llama", "llama heads of 64", "qwen3", "mistral window 9", "smollm3", "gemma3_text")
    for precision in ("fp32", "int8")
    for kernel in KERNELS
]
EXACT += [("llama biases", "int4", kernel) for kernel in KERNELS] + [("qwen3", "int4", KERNELS[0])]
DRAWN = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def path_to(tree: TokenTree, node: int) -> list[int]:
    """Nodes from the root's child down to `node`."""
    path: list[int] = []
    while node != ROOT:
        path.insert(0, node)
        node = tree.parents[node]
    return path


def read_prompt(runner: CompiledRunner, prompt: list[int], blocks: tuple[int, ...]) -> None:
    runner.forward([SequenceInput(prompt, 0, blocks, is_prompt=True, logits_from=len(prompt))])


def as_input(tree: TokenTree, past: int, blocks: tuple[int, ...] = TREE_BLOCKS) -> SequenceInput:
    parents = (0, *(parent + 1 for parent in tree.parents))
    return SequenceInput((ROOT_TOKEN, *tree.tokens), past, blocks, parents=parents)


def run_tree(runner: CompiledRunner, tree: TokenTree, past: int) -> NDArray[np.float32]:
    return runner.forward([as_input(tree, past)]).copy()


def random_prompt(runner: CompiledRunner, length: int) -> list[int]:
    prompt: list[int] = np.random.default_rng(length).integers(0, runner.vocab_size, length).tolist()
    return prompt


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    size = draw(st.integers(1, 16))
    parents = tuple(draw(st.integers(ROOT, node - 1)) for node in range(size))
    return TokenTree(tuple(draw(st.integers(0, 264)) for _ in range(size)), parents)


@pytest.mark.parametrize("variant", VARIANTS)
@DRAWN
@given(tree=trees(), length=st.integers(1, 70))
def test_every_node_sees_its_path_alone(
    variant: str, tree: TokenTree, length: int, tiny_targets: TinyTargets
) -> None:
    weights, runner = tiny_targets.weights(variant), tiny_targets.runner(variant, "fp32")
    prompt = random_prompt(runner, length)
    read_prompt(runner, prompt, TREE_BLOCKS)
    found = run_tree(runner, tree, length)
    everything = [*prompt, ROOT_TOKEN, *tree.tokens]
    allowed = np.tri(len(everything), dtype=bool)
    allowed[length:, length:] = tree.ancestor_mask()
    positions = [*range(length), *(length + depth for depth in (0, *tree.depths))]
    expected = forward(weights.architecture, weights, everything, allowed=allowed, positions=positions)
    np.testing.assert_allclose(found, expected[length:], atol=TOLERANCE)


def check_equal_to_paths(runner: CompiledRunner, plain: CompiledRunner, tree: TokenTree, length: int) -> None:
    """Every node's logits are those of its path decoded token by token, on a runner that knows no branches."""
    prompt = random_prompt(runner, length)
    read_prompt(runner, prompt, TREE_BLOCKS)
    found = run_tree(runner, tree, length)
    read_prompt(plain, prompt, PATH_BLOCKS)
    nodes = [ROOT]
    while (
        nodes
    ):  # depth first: the rows of a node's ancestors are always the last that were written at their places
        node = nodes.pop()
        token, row = (ROOT_TOKEN, 0) if node == ROOT else (tree.tokens[node], tree.depths[node])
        alone = plain.forward([SequenceInput([token], length + row, PATH_BLOCKS)])
        np.testing.assert_array_equal(found[node + 1], alone[0], err_msg=f"node {node}")
        nodes += tree.children(node)


@pytest.mark.parametrize(("variant", "precision", "kernel"), EXACT)
@DRAWN
@given(tree=trees(), length=st.integers(1, 70))
def test_node_and_path_are_equal_bit_for_bit(
    variant: str, precision: str, kernel: KernelName, tree: TokenTree, length: int, tiny_targets: TinyTargets
) -> None:
    runner, plain = (
        make(variant, precision, kernel, threads=SEVERAL_THREADS)
        for make in (tiny_targets.runner, tiny_targets.plain_runner)
    )
    check_equal_to_paths(runner, plain, tree, length)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_node_and_path_are_equal_at_full_size(
    precision: str, kernel: KernelName, tiny_targets: TinyTargets
) -> None:
    directory = tiny_targets.engine(FULL_SIZE, precision)
    runner = openvino_runner(directory, num_blocks=NUM_BLOCKS, branch_blocks=64, attention=Attention(kernel))
    plain = openvino_runner(directory, num_blocks=NUM_BLOCKS, attention=Attention(kernel))
    wide = TokenTree(tuple(range(100, 116)), (-1, -1, -1, 0, 0, 1, 1, 2, 3, 3, 4, 5, 8, 8, 9, 12))
    for length in (7, 58, 62):
        check_equal_to_paths(runner, plain, wide, length)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(DRAWN, max_examples=25)
@given(tree=trees(), length=st.integers(1, 70), data=st.data())
def test_commit_keeps_the_accepted_path_and_nothing_else(
    kernel: KernelName, tree: TokenTree, length: int, data: st.DataObject, tiny_targets: TinyTargets
) -> None:
    runner = tiny_targets.runner("llama", "int8", kernel)
    plain = tiny_targets.plain_runner("llama", "int8", kernel)
    prompt = random_prompt(runner, length)
    path = path_to(tree, data.draw(st.integers(ROOT, len(tree) - 1), label="last accepted node"))
    read_prompt(runner, prompt, TREE_BLOCKS)
    run_tree(runner, tree, length)
    runner.commit(0, (0, *(node + 1 for node in path)))
    kept = [ROOT_TOKEN, *(tree.tokens[node] for node in path)]
    found = runner.forward([SequenceInput([NEXT_TOKEN], length + len(kept), TREE_BLOCKS)]).copy()
    read_prompt(plain, prompt, PATH_BLOCKS)
    expected = plain.forward([SequenceInput([*kept, NEXT_TOKEN], length, PATH_BLOCKS)])
    np.testing.assert_array_equal(found[0], expected[-1])


def test_without_commit_the_rows_are_those_of_the_first_chain(tiny_targets: TinyTargets) -> None:
    """What the test above relies on: a path that is not committed is not there."""
    runner = tiny_targets.runner("llama", "int8")
    found = []
    for kept in ((0, 2), (0, 1)):
        read_prompt(runner, [1, 2, 3], TREE_BLOCKS)
        run_tree(runner, TokenTree((5, 6), (ROOT, ROOT)), 3)
        runner.commit(0, kept)
        found.append(runner.forward([SequenceInput([NEXT_TOKEN], 5, TREE_BLOCKS)]).copy())
    read_prompt(runner, [1, 2, 3], TREE_BLOCKS)
    run_tree(runner, TokenTree((5, 6), (ROOT, ROOT)), 3)
    uncommitted = runner.forward([SequenceInput([NEXT_TOKEN], 5, TREE_BLOCKS)])
    np.testing.assert_array_equal(uncommitted, found[1])
    assert (uncommitted != found[0]).any()


def test_trees_chains_and_prompts_share_a_step(tiny_targets: TinyTargets) -> None:
    runner = tiny_targets.runner("llama", "int8")
    tree = TokenTree((5, 6, 7), (ROOT, ROOT, 0))
    read_prompt(runner, [1, 2, 3], TREE_BLOCKS)
    read_prompt(runner, [1, 2, 3], (20,))
    read_prompt(runner, [4, 5], PATH_BLOCKS)
    alone, chain = run_tree(runner, tree, 3), SequenceInput([8, 9], 2, PATH_BLOCKS)
    prompt = SequenceInput([3, 1, 4, 1, 5], 0, (21,), is_prompt=True)
    expected = [runner.forward([item]).copy() for item in (chain, prompt)]
    batch = [chain, as_input(tree, 3), prompt, as_input(tree, 3, (20,))]
    together = runner.forward(batch)
    for begin, wanted in ((0, expected[0]), (2, alone), (6, expected[1]), (11, alone)):
        np.testing.assert_array_equal(together[begin : begin + len(wanted)], wanted)


def test_a_runner_without_blocks_for_branches_says_so(tiny_targets: TinyTargets) -> None:
    plain = openvino_runner(
        tiny_targets.engine("llama", "fp32"), num_blocks=8, threads=THREADS, attention=Attention("openvino")
    )
    with pytest.raises(ValueError, match="branch_blocks"):
        plain.forward([as_input(TokenTree((5, 6), (ROOT, ROOT)), 0, (0,))])
