"""The target in another precision, over the cache of the target itself: what low-bit self-drafting drafts with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend
from engine.compiled_runner import CompiledRunner
from engine.manifest import SpeculatorManifest
from engine.runner import SequenceInput


class CompiledCopy:
    """A `speculators.target_access.TargetCopy`.

    Args:
        path: its graph.
        manifest: of its directory.
        backend: that of the target.
        target: whose cache it reads and writes.

    Raises:
        EngineError: the file is damaged, or the target's cache is not what the graph was made for.
    """

    def __init__(
        self, path: Path, manifest: SpeculatorManifest, backend: Backend, target: CompiledRunner
    ) -> None:
        self.graph = backend.paged(
            path,
            manifest,
            outputs=["logits"],
            num_blocks=target.num_blocks,
            branch_blocks=0,
            cache_of=target.graph,
        )

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        """See `engine.runner.Runner.forward`."""
        self.graph.forward(batch)
        return self.graph.output("logits")
