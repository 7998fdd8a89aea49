"""What runs compiled networks: OpenVINO (`engine.openvino_graphs`) or PyTorch (`engine.torch_graphs`).

Example::

    backend = open_backend("openvino", threads=2)
    runner = CompiledRunner(Path("runs/engines/smollm2-135m-int8"), backend, num_blocks=64)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.manifest import CompiledManifest
from engine.runner import SequenceInput
from speculators.graphs import Graph


class PagedNetwork(Protocol):
    """A compiled network over a paged KV cache."""

    def forward(self, batch: Sequence[SequenceInput], hidden: NDArray[np.float32] | None = None) -> None:
        """Run one step; `output` has what came out.

        Args:
            batch: the inputs of all requests.
            hidden: [tokens, H], for networks that read hidden states.
        """

    def output(self, name: str) -> NDArray[Any]:
        """An output of the last step; valid until the next."""

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""


class Backend(Protocol):
    """Loads compiled networks."""

    def plain(self, path: Path, manifest: CompiledManifest) -> Graph:
        """A network without state.

        Raises:
            EngineError: the file is damaged.
        """

    def paged(
        self,
        path: Path,
        manifest: CompiledManifest,
        *,
        outputs: Sequence[str],
        num_blocks: int,
        branch_blocks: int,
    ) -> PagedNetwork:
        """A network over a paged KV cache.

        Args:
            path: an ONNX file of `build.graph`.
            manifest: of the directory that it lies in.
            outputs: those that are wanted.
            num_blocks: cache blocks for requests.
            branch_blocks: cache blocks for the branches of the trees of one step; 0: chains only.

        Raises:
            EngineError: the file is damaged.
        """


def open_backend(name: Literal["openvino", "torch"], *, threads: int = 0) -> Backend:
    """A backend by name; PyTorch is imported only here, where it is asked for.

    Args:
        name: "openvino" (CPU), or "torch" (a CUDA device, or the CPU where there is none).
        threads: CPU threads of OpenVINO (0: all).
    """
    if name == "openvino":
        from engine.openvino_graphs import OpenVinoBackend

        return OpenVinoBackend(threads)
    from engine.torch_graphs import TorchBackend

    return TorchBackend()
