"""What graphs of OpenVINO ask of an attention kernel: it owns the KV cache of a network, or uses another's.

A kernel puts its operator into the graph, and turns a step into the graph's inputs; see `engine.attention_kernels`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from openvino.frontend.onnx import ConversionExtension

from engine.native.library import CachePrecision
from engine.runner import SequenceInput

Inputs = dict[str, NDArray[Any]]


class CompiledGraph(Protocol):
    """What a kernel binds its cache to."""

    threads: int

    def cache_ports(self) -> list[Any]:
        """Inputs that are caches, in the order of the model."""

    def use_caches(self, caches: NDArray[np.generic]) -> None:
        """Read and write these from now on, one for each port."""


class KernelStep(Protocol):
    """One run of a graph: what goes in, and what becomes of its rows.

    Attributes:
        inputs: of the graph.
        padding: tokens that it was padded with, behind all others.
    """

    @property
    def inputs(self) -> Inputs: ...

    @property
    def padding(self) -> int: ...

    def ran(self) -> None:
        """To be called when the graph has run, before the kernel is asked for another step."""

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `engine.runner.Runner.block_weights`."""

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""


class AttentionKernel(Protocol):
    """Attention over the paged cache of one network.

    Attributes:
        name: which kernel it is.
        precision: of the cache.
        most_weighed: see `engine.runner.Runner`.
        private_blocks: cache blocks for the branches of trees; they hold nothing from one step of the engine to the
            next.
    """

    precision: CachePrecision
    most_weighed: int
    private_blocks: Sequence[int]

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> Mapping[str, str]:
        """See `engine.backend.PagedNetwork.attention`."""

    def extension(self, *, padding: bool) -> ConversionExtension:
        """For an `ov.Core`, before it reads the graph.

        Args:
            padding: whether attention may have more query rows than there are tokens.
        """

    def spares_padding(self, threads: int, smallest: int) -> bool:
        """Whether graphs of `smallest` tokens or more on `threads` threads are better read again without padding."""

    def warm_up(self, tokens: int, longest: int) -> Sequence[SequenceInput]:
        """A step of `tokens` tokens that makes a graph ready for contexts of up to `longest`."""

    def equal_rows(self, rows: int) -> Sequence[SequenceInput]:
        """A step whose tokens are alike, for a cache that holds nothing yet."""

    def room(self, longest: int) -> int:
        """The most rows that `equal_rows` can be asked for."""

    def bind(self, graphs: Sequence[CompiledGraph]) -> None:
        """Allocate the cache and give it to the compiled graphs.

        Raises:
            EngineError: the cache is another's, and laid out for another network.
        """

    def sharing(self) -> "AttentionKernel":
        """One for another network, which reads and writes this one's cache; to be asked for when this one is bound."""

    def step(self, batch: Sequence[SequenceInput], tokens: int, private: Iterator[int]) -> KernelStep:
        """A run of the graph, padded to `tokens` tokens.

        Args:
            batch: its inputs.
            tokens: the fewest of the run.
            private: of `private_blocks`, those that no other run of the same step has.

        Raises:
            ValueError: the step does not fit the cache.
        """
