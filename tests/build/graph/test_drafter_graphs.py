"""Compiled drafters compute what their PyTorch modules compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from build.graph.eagle import build_eagle, build_eagle3, build_eagle3_fusion
from build.graph.heads import build_medusa, build_mlp_stage
from engine.attention_kernels import ANY_ATTENTION, open_kernel
from engine.block_graph import BlockGraph
from engine.linear_layers import LinearLayers
from engine.openvino_graphs import PagedGraph, PlainGraph, settings
from speculators.eagle.config import EagleConfig
from speculators.eagle.model import Eagle
from speculators.eagle3.checkpoint import vocabulary_maps
from speculators.eagle3.config import Eagle3Config
from speculators.eagle3.model import Eagle3
from speculators.graphs import CachedInput
from speculators.medusa.config import MedusaConfig
from speculators.medusa.model import MedusaHeads
from speculators.mlp_speculator.config import MlpSpeculatorConfig
from speculators.mlp_speculator.model import MlpSpeculator
from speculators.peagle.config import PEagleConfig
from speculators.peagle.model import PEagle
from speculators.tree import ROOT, TokenTree
from tests.planted import randomise

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
WIDTH, VOCABULARY, ROWS = 64, 90, 7
HOW = settings(precision="fp32", widths=(WIDTH,), threads=2)
LAYERS = LinearLayers(native=False)
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def saved(graph: onnx.ModelProto, path: Path) -> Path:
    onnx.save_model(graph, str(path))
    return path


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_candidates(
    candidates: NDArray[np.int64], log_probs: NDArray[np.float32], logits: torch.Tensor
) -> None:
    """All of the vocabulary, best first."""
    expected = torch.log_softmax(logits, -1).detach().numpy()
    np.testing.assert_allclose(log_probs, -np.sort(-expected, axis=-1), atol=TOLERANCE)
    np.testing.assert_allclose(np.take_along_axis(expected, candidates, -1), log_probs, atol=TOLERANCE)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("inner", [0, 96])
def test_mlp_speculator(inner: int, tied: bool, scaled: bool, tmp_path: Path) -> None:
    config = MlpSpeculatorConfig(
        vocab_size=VOCABULARY,
        emb_dim=WIDTH,
        inner_dim=inner,
        n_predict=3,
        top_k_tokens_per_head=[4, 3, 2],
        tie_weights=tied,
        scale_input=scaled,
    )
    model = MlpSpeculator(config)
    randomise(model)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (3, ROWS))
    state: Any = normal(ROWS, WIDTH)
    expected = model.first_state(torch.from_numpy(state))
    for stage in range(3):
        graph = build_mlp_stage(model.to_checkpoint(), stage, None, precision="fp32", count=VOCABULARY)
        compiled = PlainGraph(saved(graph, tmp_path / f"{stage}.onnx"), HOW, LAYERS)
        found = compiled({"state": state, "tokens": tokens[stage]})
        with torch.no_grad():
            expected, logits = model.step(stage, expected, torch.from_numpy(tokens[stage]))
        np.testing.assert_allclose(found["next_state"], expected.numpy(), atol=TOLERANCE)
        check_candidates(found["candidates"], found["log_probs"], logits)
        state = found["next_state"].copy()


@pytest.mark.parametrize("own_outputs", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_medusa(blocks: int, own_outputs: bool, tmp_path: Path) -> None:
    config = MedusaConfig(medusa_num_heads=3, medusa_num_layers=blocks)
    model = MedusaHeads(config, WIDTH, VOCABULARY if own_outputs else None)
    randomise(model)
    lm_head = None if own_outputs else normal(VOCABULARY, WIDTH, seed=3) / 8
    graph = build_medusa(model.to_checkpoint(), lm_head, None, precision="fp32", count=VOCABULARY)
    found = PlainGraph(saved(graph, tmp_path / "heads.onnx"), HOW, LAYERS)({"state": normal(ROWS, WIDTH)})
    logits = model(
        torch.from_numpy(normal(ROWS, WIDTH)), None if lm_head is None else torch.from_numpy(lm_head)
    )
    check_candidates(found["candidates"], found["log_probs"], logits)


def test_heads_with_a_draft_vocabulary_guess_in_it_alone(tmp_path: Path) -> None:
    kept = np.sort(np.random.default_rng(7).permutation(VOCABULARY)[:30])
    config = MlpSpeculatorConfig(vocab_size=VOCABULARY, emb_dim=WIDTH, n_predict=1, top_k_tokens_per_head=[3])
    speculator, heads = (
        MlpSpeculator(config),
        MedusaHeads(MedusaConfig(medusa_num_heads=2), WIDTH, VOCABULARY),
    )
    randomise(speculator)
    randomise(heads)
    state, tokens = normal(ROWS, WIDTH), np.arange(ROWS)
    with torch.no_grad():
        _, logits = speculator.step(0, torch.from_numpy(state), torch.from_numpy(tokens))
        outputs = heads(torch.from_numpy(state))
    stage = build_mlp_stage(speculator.to_checkpoint(), 0, kept, precision="fp32", count=30)
    medusa = build_medusa(heads.to_checkpoint(), None, kept, precision="fp32", count=30)
    found = (
        PlainGraph(saved(stage, tmp_path / "stage.onnx"), HOW, LAYERS)({"state": state, "tokens": tokens}),
        PlainGraph(saved(medusa, tmp_path / "heads.onnx"), HOW, LAYERS)({"state": state}),
    )
    for part, expected in zip(found, (logits, outputs), strict=True):
        assert set(part["candidates"].ravel()) == set(kept)
        check_candidates(np.searchsorted(kept, part["candidates"]), part["log_probs"], expected[..., kept])


def in_blocks(graph: onnx.ModelProto, path: Path) -> BlockGraph:
    outputs = ("candidates", "log_probs", "next_hidden")
    kernel = open_kernel(ANY_ATTENTION, weights="fp32", num_blocks=16, branch_blocks=32)
    compiled = PagedGraph(saved(graph, path), outputs=outputs, kernel=kernel, longest=64, how=HOW)
    return BlockGraph(compiled, outputs, num_blocks=16)


CONTEXT = 40
TREE = TokenTree((5, 6, 7, 8, 9, 10), (ROOT, ROOT, 0, 0, 1, 2))
OUTPUTS_FROM = 2


def run_graph(
    graph: BlockGraph, tokens: NDArray[np.int64], hidden: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """A context read in two parts beside another request's, then a tree below its last row: outputs of both."""
    blocks = (9, 4, 6, 1)
    other = CachedInput((2, 3), tokens[:9].tolist(), 0, hidden=hidden[:9])
    graph.run([CachedInput(blocks, tokens[:25].tolist(), 0, outputs_from=25, hidden=hidden[:25]), other])
    rest = CachedInput(blocks, tokens[25:CONTEXT].tolist(), 25, hidden=hidden[25:CONTEXT])
    found = [{name: values.copy() for name, values in graph.run([rest]).items()}]
    parents = (0, *(parent + 1 for parent in TREE.parents))
    below = (int(tokens[CONTEXT - 1]), *TREE.tokens)
    tree = CachedInput(blocks, below, CONTEXT - 1, parents, OUTPUTS_FROM, hidden[CONTEXT - 1 :])
    found.append({name: values.copy() for name, values in graph.run([tree]).items()})
    return found


def with_tree() -> tuple[NDArray[np.int64], NDArray[np.float32], torch.Tensor, torch.Tensor]:
    """Tokens and hidden states of context and tree, their positions, and who sees whom."""
    size = CONTEXT + len(TREE)
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, size)
    tokens[CONTEXT:] = TREE.tokens
    visible = np.tri(size, dtype=bool)
    visible[CONTEXT:, CONTEXT - 1 :] = TREE.ancestor_mask()[1:]
    positions = [*range(CONTEXT), *(CONTEXT - 1 + depth for depth in TREE.depths)]
    return tokens, normal(size, WIDTH, seed=4), torch.tensor([positions]), torch.from_numpy(visible)[None]


def check_drafter(found: list[dict[str, Any]], values: torch.Tensor, logits: torch.Tensor) -> None:
    """`values` and `logits` of all rows."""
    for part, rows in zip(found, (slice(25, CONTEXT), slice(CONTEXT - 1 + OUTPUTS_FROM, None)), strict=True):
        np.testing.assert_allclose(part["next_hidden"], values[rows].numpy(), atol=TOLERANCE)
        check_candidates(part["candidates"], part["log_probs"], logits[rows])


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False, "qkv_bias": True}, {"num_hidden_layers": 2}, {"rope_scaling": _LLAMA3}],
    ids=["plain", "qwen biases", "two layers", "llama3 rope"],
)
def test_eagle(changes: dict[str, Any], tmp_path: Path) -> None:
    model = Eagle(EagleConfig.parse({**_LLAMA, **changes}, "config"))
    randomise(model)
    embedding, lm_head = normal(VOCABULARY, WIDTH, seed=5), normal(VOCABULARY, WIDTH, seed=6) / 8
    graph = build_eagle(
        model.to_checkpoint(),
        embedding,
        lm_head,
        precision="fp32",
        count=VOCABULARY,
        max_positions=128,
        block_size=32,
    )
    tokens, hidden, positions, visible = with_tree()
    with torch.no_grad():
        embedded = torch.from_numpy(embedding[tokens])[None]
        values, _ = model(torch.from_numpy(hidden)[None], embedded, positions, visible)
    found = run_graph(in_blocks(graph, tmp_path / "drafter.onnx"), tokens, hidden)
    check_drafter(found, values[0], values[0] @ torch.from_numpy(lm_head).T)


@pytest.mark.parametrize(
    ("drafted", "changes"),
    [
        (VOCABULARY, {}),
        (60, {}),
        (60, {"norm_before_residual": True}),
        (60, {"norm_output": True}),
        (60, {"model_type": "qwen3", "architectures": ["LlamaForCausalLMEagle3"]}),
    ],
    ids=str,
)
def test_eagle3(drafted: int, changes: dict[str, Any], tmp_path: Path) -> None:
    content = {**_LLAMA, "draft_vocab_size": drafted, **changes}
    model = Eagle3(Eagle3Config.parse(content, "config"))
    randomise(model)
    kept = np.sort(np.random.default_rng(0).permutation(VOCABULARY)[:drafted])
    if drafted < VOCABULARY:
        maps = vocabulary_maps(kept, VOCABULARY)
        model.d2t.copy_(torch.from_numpy(maps["d2t"]))
        model.t2d.copy_(torch.from_numpy(maps["t2d"]))
    embedding = normal(VOCABULARY, WIDTH, seed=5)
    graph = build_eagle3(
        model.to_checkpoint(), embedding, precision="fp32", count=drafted, max_positions=128, block_size=32
    )
    tokens, hidden, positions, visible = with_tree()
    with torch.no_grad():
        embedded = torch.from_numpy(embedding[tokens])[None]
        values, _ = model(torch.from_numpy(hidden)[None], embedded, positions, visible)
        logits = model.logits(values[0])
    found = run_graph(in_blocks(graph, tmp_path / "drafter.onnx"), tokens, hidden)
    for part in found:
        assert set(part["candidates"][0]) == set(kept)
        part["candidates"] = np.searchsorted(kept, part["candidates"])  # as ids of the draft vocabulary
    check_drafter(found, values[0], logits)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        (1, {}),
        (3, {}),
        (2, {"norm_before_residual": True, "norm_output": True}),
        (2, {"model_type": "qwen3"}),
        (2, {"attention_bias": True}),
    ],
    ids=str,
)
def test_a_block_of_peagle(layers: int, changes: dict[str, Any], size: int, tmp_path: Path) -> None:
    """A text that is read in two parts, and masks behind it with the second, for two requests at once."""
    content = {**_LLAMA, "num_hidden_layers": layers, "mask_token_id": VOCABULARY - 1, **changes}
    model = PEagle(PEagleConfig.parse(content, "config"))
    randomise(model)
    embedding = normal(VOCABULARY, WIDTH, seed=5)
    graph = build_eagle3(
        model.to_checkpoint(), embedding, precision="fp32", count=VOCABULARY, max_positions=128, block_size=32
    )
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, CONTEXT + size - 1)
    tokens[CONTEXT:] = VOCABULARY - 1
    rows = len(tokens)
    with torch.no_grad():
        hidden = normal(rows, WIDTH, seed=4)
        hidden[CONTEXT:] = model.fuse(model.mask_hidden[0]).numpy()
        embedded = torch.from_numpy(embedding[tokens])[None]
        visible = torch.ones(1, rows, rows, dtype=torch.bool).tril()
        values, _ = model(torch.from_numpy(hidden)[None], embedded, torch.arange(rows)[None], visible)
        logits = model.logits(values[0, -size:])
    compiled = in_blocks(graph, tmp_path / "drafter.onnx")
    first = [
        CachedInput(blocks, tokens[:25].tolist(), 0, outputs_from=25, hidden=hidden[:25])
        for blocks in ((9, 4, 6), (2, 3, 1))
    ]
    compiled.run(first)
    rest = [
        CachedInput(part.blocks, tokens[25:].tolist(), 25, None, CONTEXT - 26, hidden[25:]) for part in first
    ]
    found = compiled.run(rest)
    check_candidates(found["candidates"], found["log_probs"], torch.cat([logits, logits]))


@pytest.mark.parametrize("switch", ["bias", "norm_before_fc", "fc_norm"])
def test_fused_features_of_eagle3(switch: str, tmp_path: Path) -> None:
    model = Eagle3(Eagle3Config.parse({**_LLAMA, switch: True}, "config"))
    randomise(model)
    graph = build_eagle3_fusion(model.to_checkpoint())
    features = normal(ROWS, 3 * WIDTH)
    found = PlainGraph(saved(graph, tmp_path / "fusion.onnx"), HOW, LAYERS)({"features": features})
    expected = model.fuse(torch.from_numpy(features)).detach().numpy()
    np.testing.assert_allclose(found["hidden"], expected, atol=TOLERANCE)


def test_fused_features_of_peagle_end_with_those_of_its_mask(tmp_path: Path) -> None:
    model = PEagle(PEagleConfig.parse({**_LLAMA, "mask_token_id": 3, "fc_norm": True}, "config"))
    randomise(model)
    fusion = PlainGraph(
        saved(build_eagle3_fusion(model.to_checkpoint()), tmp_path / "fusion.onnx"), HOW, LAYERS
    )
    features = normal(ROWS, 3 * WIDTH)
    with torch.no_grad():
        expected = model.fuse(torch.cat([torch.from_numpy(features), model.mask_hidden[0]])).numpy()
    np.testing.assert_allclose(fusion({"features": features})["hidden"], expected, atol=TOLERANCE)
