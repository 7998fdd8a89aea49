"""The PyTorch runner is the reference of the OpenVINO engine: same compiled graphs, same results.

On a machine without CUDA its steps run on the CPU, padded as they are for CUDA graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compiled_runner import CompiledRunner
from engine.manifest import EngineError
from engine.request import GenerationRequest, SamplingParams
from engine.runner import SequenceInput
from speculators.registry import create
from speculators.tree import TokenTree
from tests.drafters import VARIANT as DRAFTED
from tests.drafters import TinyDrafters, layers_of, planted_prompts
from tests.engine.driving import generate, make_engine, prompt_of, run
from tests.engine.test_runner_trees import DRAWN, as_input, trees
from tests.runners import openvino_runner
from tests.tiny import NUM_BLOCKS, THREADS, TinyTargets

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
BLOCKS = (9, 4, 6, 1)
LAYERS = (0, 1, -1)
_RUNNERS: dict[str, tuple[CompiledRunner, CompiledRunner]] = {}


def both(targets: TinyTargets, variant: str) -> tuple[CompiledRunner, CompiledRunner]:
    """The same fp32 engine on PyTorch and on OpenVINO."""
    from engine.torch_graphs import TorchBackend

    if variant not in _RUNNERS:
        directory = targets.engine(variant, "fp32")
        how: dict[str, Any] = {"num_blocks": NUM_BLOCKS, "hidden_layers": LAYERS, "branch_blocks": 64}
        _RUNNERS[variant] = (
            CompiledRunner(directory, TorchBackend(), **how),
            openvino_runner(directory, threads=THREADS, **how),
        )
    return _RUNNERS[variant]


def check_step(runners: tuple[CompiledRunner, CompiledRunner], batch: list[SequenceInput]) -> None:
    tokens = sum(len(item.tokens) for item in batch)
    logits, hidden = [], []
    for runner in runners:
        logits.append(runner.forward(batch).copy())
        hidden.append(runner.hidden()[:tokens])
    np.testing.assert_allclose(logits[0], logits[1], atol=TOLERANCE)
    np.testing.assert_allclose(hidden[0], hidden[1], atol=TOLERANCE)


@pytest.mark.parametrize(
    "variant", ["llama", "qwen2", "qwen3", "granite", "smollm3", "mistral window 9", "llama biases"]
)
def test_prompts_chains_and_single_tokens(variant: str, tiny_targets: TinyTargets) -> None:
    runners = both(tiny_targets, variant)
    tokens = np.random.default_rng(1).integers(0, 265, 90).tolist()
    other = SequenceInput(tokens[:37], 0, (20, 21), is_prompt=True, logits_from=36)
    check_step(runners, [SequenceInput(tokens[:50], 0, BLOCKS, is_prompt=True, logits_from=49)])
    check_step(runners, [SequenceInput(tokens[50:55], 50, BLOCKS), other])
    check_step(runners, [SequenceInput(tokens[37:38], 37, (20, 21))])
    check_step(
        runners, [SequenceInput(tokens[55:70], 55, BLOCKS), SequenceInput(tokens[38:40], 38, (20, 21))]
    )


@pytest.mark.parametrize("variant", ["llama", "mistral window 9"])
@settings(DRAWN, max_examples=10)
@given(tree=trees(), length=st.integers(1, 70), data=st.data())
def test_trees_and_what_is_kept_of_them(
    variant: str, tree: Any, length: int, data: st.DataObject, tiny_targets: Any
) -> None:
    runners = both(tiny_targets, variant)
    prompt = np.random.default_rng(length).integers(0, 265, length).tolist()
    check_step(runners, [SequenceInput(prompt, 0, BLOCKS, is_prompt=True, logits_from=length)])
    check_step(runners, [as_input(tree, length, BLOCKS)])
    kept = [data.draw(st.integers(-1, len(tree) - 1))]
    while kept[0] != -1:
        kept.insert(0, tree.parents[kept[0]])
    for runner in runners:
        runner.commit(0, [node + 1 for node in kept])
    check_step(runners, [SequenceInput([99], length + len(kept), BLOCKS)])


def test_trees_chains_and_prompts_share_a_step(tiny_targets: TinyTargets) -> None:
    """A tree with more rows than its request has room for, and paths that are kept of two trees at once."""
    runners = both(tiny_targets, "llama")
    wide = TokenTree(tuple(range(100, 140)), tuple(node // 3 - 1 for node in range(40)))
    prompt = prompt_of(30)
    others = [SequenceInput(prompt, 0, (block,), is_prompt=True, logits_from=29) for block in (20, 21, 22)]
    check_step(runners, others)
    batch = [
        as_input(wide, 30, (20,)),
        SequenceInput([8, 9], 30, (21,)),
        SequenceInput(prompt_of(40), 0, (23, 24), is_prompt=True),
        as_input(wide, 30, (22, 25)),
    ]
    check_step(runners, batch)
    for runner in runners:
        runner.commit(0, [0, 2])
        runner.commit(3, [0, 3, 10, 33])
    check_step(runners, [SequenceInput([99], 34, (22, 25)), SequenceInput([7], 40, (23, 24))])
    for runner in runners:
        with pytest.raises(ValueError, match="branch_blocks"):
            runner.forward([as_input(TokenTree(tuple(range(2200)), (-1,) * 2200), 30, (20,))])


def test_a_list_of_blocks_need_not_be_the_whole_context(tiny_targets: TinyTargets) -> None:
    """As drafts on a window of the cache have it: positions are not rows."""
    runners = both(tiny_targets, "llama")
    check_step(runners, [SequenceInput(prompt_of(120), 0, BLOCKS, is_prompt=True, logits_from=119)])
    window = SequenceInput([5, 6, 7], 56, (BLOCKS[0], BLOCKS[3]), position=120)
    check_step(runners, [window, SequenceInput(prompt_of(40), 0, (23, 24), is_prompt=True)])
    check_step(runners, [window, SequenceInput([8], 40, (23, 24))])


@pytest.mark.parametrize(
    "name", ["mlp_speculator, tree", "medusa, tree", "eagle3, tree", "draft_model, chain"]
)
def test_drafters_on_pytorch_give_the_output_of_openvino(name: str, tiny_drafters: TinyDrafters) -> None:
    from engine.torch_graphs import TorchBackend

    backend = TorchBackend()
    speculators = tiny_drafters.speculators(name, "fp32", planted=True, slots=4, backend=backend)
    directory = tiny_drafters.targets.engine(DRAFTED, "fp32")
    runner = CompiledRunner(
        directory, backend, num_blocks=NUM_BLOCKS, hidden_layers=layers_of(speculators), branch_blocks=256
    )
    requests = [GenerationRequest(prompt, 20) for prompt in planted_prompts()[:3]]
    requests.append(GenerationRequest(prompt_of(40), 12, SamplingParams(temperature=0.8, seed=3)))
    engine = make_engine(runner, speculators, max_batch_size=4)
    found = [outcome.tokens for outcome in run(engine, requests)]
    openvino = tiny_drafters.targets.runner(DRAFTED, "fp32")
    assert found == [generate(openvino, request).tokens for request in requests]
    assert (engine.statistics.tokens_per_step or 0.0) > 1.2


def test_of_greedy_steps_tokens_alone_reach_the_host(
    tiny_targets: TinyTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import torch_graphs

    runner, openvino = both(tiny_targets, "llama")
    copied: list[int] = []
    whole = torch_graphs._array

    def watched(tensor: Any) -> Any:
        copied.append(tensor.numel())
        return whole(tensor)

    requests = [GenerationRequest(prompt_of(20 + place), 12) for place in range(3)]
    expected = [generate(openvino, request).tokens for request in requests]
    monkeypatch.setattr(torch_graphs, "_array", watched)
    engine = make_engine(runner, create("anpd"), max_batch_size=4)
    assert [outcome.tokens for outcome in run(engine, requests)] == expected
    assert copied and max(copied) < runner.vocab_size


def test_int8_engines_run_with_their_rounded_weights(tiny_targets: TinyTargets) -> None:
    """PyTorch does not quantise activations, so logits are close, not equal."""
    from engine.torch_graphs import TorchBackend

    directory = tiny_targets.engine("llama", "int8")
    runner = CompiledRunner(directory, TorchBackend(), num_blocks=NUM_BLOCKS)
    item = SequenceInput(prompt_of(30), 0, BLOCKS, is_prompt=True)
    logits = runner.forward([item])
    expected = tiny_targets.runner("llama", "int8").forward([item])
    assert np.sqrt(((logits - expected) ** 2).mean()) < 0.05 * expected.std()


@pytest.mark.parametrize("variant", ["llama", "qwen3", "granite", "gemma3_text"])
def test_bf16_is_what_quantised_engines_have_on_cuda_devices(variant: str, tiny_targets: TinyTargets) -> None:
    import torch

    from engine.torch_graphs import TorchPagedGraph

    found = []
    for dtype in (torch.bfloat16, torch.float32):
        path = tiny_targets.engine(variant, "int8") / "model.onnx"
        graph = TorchPagedGraph(path, outputs=["logits"], num_blocks=8, branch_blocks=0, dtype=dtype)
        graph.forward([SequenceInput(prompt_of(60), 0, (1, 2, 3), is_prompt=True)])
        graph.forward([SequenceInput(prompt_of(5), 60, (1, 2, 3))])
        found.append(graph.output("logits"))
    assert graph.attention["kv_cache_precision"] == "fp32"
    error = np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1])
    assert 1e-5 < error < 0.03


def test_a_damaged_graph_is_refused(tiny_targets: TinyTargets, tmp_path: Any) -> None:
    import shutil

    from engine.torch_graphs import TorchBackend

    directory = tmp_path / "engine"
    shutil.copytree(tiny_targets.engine("llama", "fp32"), directory)
    path = directory / "model.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(EngineError, match=r"model.onnx is damaged .* run `drafthouse build` again"):
        CompiledRunner(directory, TorchBackend(), num_blocks=4)
