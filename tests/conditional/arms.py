"""The compiled drafters that are timed: all rows of the output, fewer, a tree's leaves, and what bounds a gain."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from build.graph.eagle import build_eagle3
from build.graph.heads import build_mlp_stage
from build.targets.weights import load_weights
from deployments.spec import DeploymentSpec
from deployments.speculation import Eagle3, MlpSpeculator
from engine.attention_kernels import ANY_ATTENTION, chosen_kernel, open_kernel
from engine.block_graph import BlockGraph
from engine.linear_layers import LinearLayers
from engine.openvino_graphs import PagedGraph, PlainGraph, settings
from engine.runner import BLOCK_SIZE
from planner.bench.measure import CONTEXT, Subject, repeated
from speculators.eagle3 import checkpoint as eagle3
from speculators.formats.checkpoint import Checkpoint
from speculators.formats.draft_vocabulary import drafted_ids
from speculators.graphs import CachedInput
from speculators.mlp_speculator import checkpoint as mlp_speculator
from tests.conditional.graph import with_tree
from tests.conditional.tree import OutputTree

ROWS = (1, 8)
"""Requests that get one more token in a call."""
FEW = 32
"""Rows or neurons that take next to no time."""
_CANDIDATES = 10
_REPEATS = 12
_BLOCKS = CONTEXT // BLOCK_SIZE + 1  # of a request
_OUTPUTS = ("candidates", "log_probs", "next_hidden")


def all_rows(size: int) -> str:
    """Name of the arm with a draft vocabulary of that size."""
    return f"{size} rows"


def leaves(read: int, tree: OutputTree) -> str:
    """Name of the arm that reads so many leaves."""
    return f"{read} of {len(tree.leaves)} leaves"


def build_arms(
    spec: DeploymentSpec,
    by_use: NDArray[np.int64],
    tree: OutputTree,
    sizes: Sequence[int],
    read: Sequence[int],
) -> Mapping[str, onnx.ModelProto]:
    """Graphs by name of the arm; `by_use` are rows of the output matrix, those that are used most in front."""
    drafter = _Eagle3(spec) if isinstance(spec.speculation, Eagle3) else _MlpSpeculator(spec)
    whole = drafter.build(np.arange(len(by_use)))
    found = {all_rows(len(by_use)): whole}
    found |= {all_rows(size): drafter.build(np.sort(by_use[:size])) for size in (*sizes, FEW)}
    for count in read:
        found[leaves(count, tree)] = with_tree(
            whole,
            drafter.output,
            drafter.ids,
            replace(tree, read=count),
            name=drafter.name,
            precision=spec.embedded.precision,
            count=_CANDIDATES,
        )
    if isinstance(drafter, _Eagle3):
        found[f"{FEW} inner neurons"] = drafter.build(np.arange(len(by_use)), FEW)
    return found


def timed(spec: DeploymentSpec, path: Path) -> Mapping[int, Subject]:
    """Milliseconds of a call of a graph, by the number of requests in it."""
    is_paged, engine = isinstance(spec.speculation, Eagle3), spec.embedded
    width = _width(path, "hidden" if is_paged else "state")
    how = settings(precision=engine.precision, widths=(width,), threads=engine.threads)
    run = _paged(spec, path, width, how) if is_paged else _plain(path, width, how)
    return {rows: partial(repeated, partial(_milliseconds, partial(run, rows)), _REPEATS) for rows in ROWS}


class _Eagle3:
    """Graphs of an EAGLE-3 drafter; `ids` are the target's of the rows of `output`, whose name in graphs is `name`."""

    name = "lm_head"

    def __init__(self, spec: DeploymentSpec) -> None:
        assert isinstance(spec.speculation, Eagle3)
        self._found = eagle3.load_checkpoint(spec.speculation.checkpoint)
        self._embedding = load_weights(spec.target.model)["model.embed_tokens.weight"]
        self._engine = spec.embedded
        self.output = self._found.tensors[eagle3.OUTPUT].astype(np.float32)
        self.ids = eagle3.target_ids(self._found)

    def build(self, rows: NDArray[np.int64], inner: int | None = None) -> onnx.ModelProto:
        """With these rows of the output, and so many neurons of the feed-forward layer."""
        config, tensors = self._found.config, dict(self._found.tensors)
        inner = inner or config.intermediate_size
        for name in ("gate", "up"):
            tensors[f"midlayer.mlp.{name}_proj.weight"] = tensors[f"midlayer.mlp.{name}_proj.weight"][:inner]
        tensors["midlayer.mlp.down_proj.weight"] = tensors["midlayer.mlp.down_proj.weight"][:, :inner]
        tensors[eagle3.OUTPUT] = tensors[eagle3.OUTPUT][rows]
        tensors |= eagle3.vocabulary_maps(self.ids[rows], config.vocab_size)
        changed = config.changed(draft_vocab_size=len(rows), intermediate_size=inner)
        return build_eagle3(
            Checkpoint(changed, tensors),
            self._embedding,
            precision=self._engine.precision,
            count=_CANDIDATES,
            max_positions=self._engine.max_sequence_length,
            block_size=BLOCK_SIZE,
        )


class _MlpSpeculator:
    """Graphs of a stage of an MLP speculator, the second one if it has two; see `_Eagle3`."""

    name = "head"

    def __init__(self, spec: DeploymentSpec) -> None:
        assert isinstance(spec.speculation, MlpSpeculator)
        self._found = mlp_speculator.load_checkpoint(spec.speculation.checkpoint)
        config = self._found.config
        self._stage, self._engine = min(1, config.n_predict - 1), spec.embedded
        self.ids = drafted_ids(spec.speculation.checkpoint, config.vocab_size)
        head = mlp_speculator.stored_name(config, f"head.{self._stage}.weight")
        self.output = self._found.tensors[head][self.ids].astype(np.float32)

    def build(self, rows: NDArray[np.int64]) -> onnx.ModelProto:
        """With these rows of the output."""
        return build_mlp_stage(
            self._found,
            self._stage,
            self.ids[rows],
            precision=self._engine.precision,
            count=_CANDIDATES,
        )


def _paged(
    spec: DeploymentSpec, path: Path, width: int, how: Mapping[str, object]
) -> Callable[[int], object]:
    blocks, engine = max(ROWS) * _BLOCKS, spec.embedded
    kernel = open_kernel(ANY_ATTENTION, weights=engine.precision, num_blocks=blocks, branch_blocks=0)
    paged = PagedGraph(path, outputs=_OUTPUTS, kernel=kernel, longest=engine.max_sequence_length, how=how)
    graph, batch = BlockGraph(paged, _OUTPUTS, blocks), []
    tokens, hidden = list(range(CONTEXT)), _states(CONTEXT, width)
    for row in range(max(ROWS)):
        own = range(row * _BLOCKS, (row + 1) * _BLOCKS)
        graph.run([CachedInput(own, tokens, 0, outputs_from=CONTEXT - 1, hidden=hidden)])
        batch.append(CachedInput(own, tokens[:1], CONTEXT, hidden=hidden[row : row + 1]))
    return lambda rows: graph.run(batch[:rows])


def _plain(path: Path, width: int, how: Mapping[str, object]) -> Callable[[int], object]:
    layers = LinearLayers(native=chosen_kernel(ANY_ATTENTION) == "native")
    graph, states, tokens = PlainGraph(path, how, layers), _states(max(ROWS), width), np.arange(max(ROWS))
    return lambda rows: graph({"state": states[:rows], "tokens": tokens[:rows]})


def _states(rows: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)


def _width(path: Path, name: str) -> int:
    inputs: Any = {value.name: value for value in onnx.load(str(path)).graph.input}
    return int(inputs[name].type.tensor_type.shape.dim[1].dim_value)


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3
