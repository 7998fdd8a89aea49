"""A Runner over a compiled target, whatever runs its graph."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend
from engine.manifest import MODEL_NAME, EngineError, EngineManifest, load_manifest
from engine.runner import BestLogits, SequenceInput


class CompiledRunner:
    """A Runner (see `engine.runner`) over `model.onnx`.

    Args:
        directory: as `build.compile` writes it.
        backend: what runs the graph.
        num_blocks: cache blocks for requests.
        hidden_layers: which hidden states `hidden` gives: i is the input of layer i, the number of layers
            (or -1) what comes out of the final norm.
        branch_blocks: cache blocks for the branches of the trees of one step; 0: chains only.

    Raises:
        EngineError: the engine is missing, damaged or of another format, or has no such layer.
    """

    def __init__(
        self,
        directory: Path,
        backend: Backend,
        *,
        num_blocks: int,
        hidden_layers: Sequence[int] = (),
        branch_blocks: int = 0,
    ) -> None:
        self.manifest = load_manifest(directory)
        self.vocab_size = self.manifest.vocab_size
        self.block_size = self.manifest.block_size
        self.num_blocks = num_blocks
        self.max_sequence_length = self.manifest.max_sequence_length
        self.hidden_layers: Sequence[int] = tuple(hidden_layers)
        self._hidden_names = [_hidden_name(layer, self.manifest) for layer in hidden_layers]
        self.graph = backend.paged(
            directory / MODEL_NAME,
            self.manifest,
            outputs=["logits", *self._hidden_names],
            num_blocks=num_blocks,
            branch_blocks=branch_blocks,
        )
        self.buckets = self.graph.buckets
        self.most_weighed = self.graph.most_weighed
        self.one_kind_of_rows = self.graph.one_kind_of_rows
        self.gives_best = self.graph.gives_best

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        """One step; see `engine.runner.Runner.forward`."""
        self.graph.forward(batch)
        return self.graph.output("logits")

    def forward_best(self, batch: Sequence[SequenceInput]) -> BestLogits:
        """One step; see `engine.runner.Runner.forward_best`."""
        self.graph.forward(batch)
        return self.graph.best("logits")

    def hidden(self) -> NDArray[np.float32]:
        """Hidden states of the last step; see `engine.runner.Runner.hidden`."""
        return np.stack([self.graph.output(name) for name in self._hidden_names], axis=1)

    def keeps_bits(self, rows: int) -> bool:
        """See `engine.backend.PagedNetwork.keeps_bits`."""
        return self.graph.keeps_bits(rows)

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `engine.runner.Runner.block_weights`."""
        return self.graph.block_weights(index)

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""
        self.graph.commit(index, kept)


def _hidden_name(layer: int, manifest: EngineManifest) -> str:
    last = manifest.num_layers
    if not -1 <= layer <= last:
        raise EngineError(
            f"{manifest.source} has no hidden states {layer}; it has 0 to {last}, the last as -1 too"
        )
    return f"hidden.{layer % (last + 1)}"
