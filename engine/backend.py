"""What runs compiled networks: OpenVINO (`engine.openvino_graphs`) or PyTorch (`engine.torch_graphs`).

Example::

    backend = OpenVinoBackend(threads=2)
    runner = CompiledRunner(Path("runs/engines/smollm2-135m-int8"), backend, num_blocks=64)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.manifest import CompiledManifest
from engine.runner import BestLogits, SequenceInput
from speculators.graphs import Graph


class PagedNetwork(Protocol):
    """A compiled network over a paged KV cache.

    Attributes:
        attention: what runs it: `kernel`, `instructions`, `kv_cache_precision`.
        buckets: rising numbers of rows that it is compiled for; steps are padded to them.
        most_weighed, one_kind_of_rows, gives_best: see `engine.runner.Runner`.
    """

    buckets: Sequence[int]
    most_weighed: int
    one_kind_of_rows: bool
    gives_best: bool

    @property
    def attention(self) -> Mapping[str, str]: ...

    def forward(self, batch: Sequence[SequenceInput], hidden: NDArray[np.float32] | None = None) -> None:
        """Run one step; `output` has what came out.

        Args:
            batch: the inputs of all requests.
            hidden: [tokens, H], for networks that read hidden states.
        """

    def output(self, name: str) -> NDArray[Any]:
        """An output of the last step; valid until the next."""

    def best(self, name: str) -> BestLogits:
        """The greatest of each row of an output of the last step."""

    def keeps_bits(self, rows: int) -> bool:
        """Whether a row has among this many the bits that it has among few; to be asked before there are requests."""

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `engine.runner.Runner.block_weights`."""

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
        cache_of: PagedNetwork | None = None,
    ) -> PagedNetwork:
        """A network over a paged KV cache.

        Args:
            path: an ONNX file of `build.graph`.
            manifest: of the directory that it lies in.
            outputs: those that are wanted.
            num_blocks: cache blocks for requests.
            branch_blocks: cache blocks for the branches of the trees of one step; 0: chains only.
            cache_of: a network of this backend whose cache this one reads and writes, with as many blocks; None: it has
                its own.

        Raises:
            EngineError: the file is damaged, or the other's cache is laid out for another network.
        """
