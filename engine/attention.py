"""What graphs of OpenVINO ask of an attention kernel: it owns the KV cache of a network, or uses another's.

A kernel puts its operator into the graph, and turns a step into the graph's inputs; see `engine.attention_kernels`.
"""

from collections.abc import Mapping, Sequence
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


class AttentionKernel(Protocol):
    """Attention over the paged cache of one network.

    Attributes:
        name: which kernel it is.
        precision: of the cache.
        most_weighed: see `engine.runner.Runner`.
        padding: tokens that the last step was padded with, behind all others.
    """

    precision: CachePrecision
    most_weighed: int

    @property
    def name(self) -> str: ...

    @property
    def padding(self) -> int: ...

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

    def bind(self, graphs: Sequence[CompiledGraph]) -> None:
        """Allocate the cache and give it to the compiled graphs.

        Raises:
            EngineError: the cache is another's, and laid out for another network.
        """

    def sharing(self) -> "AttentionKernel":
        """One for another network, which reads and writes this one's cache; to be asked for when this one is bound."""

    def step(self, batch: Sequence[SequenceInput], tokens: int) -> Inputs:
        """The graph's inputs for a step, padded to `tokens` tokens.

        Raises:
            ValueError: the step does not fit the cache.
        """

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `engine.runner.Runner.block_weights`."""

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""
