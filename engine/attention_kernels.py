"""The two attention kernels of OpenVINO graphs: the kit's own, and the one that OpenVINO brings."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension
from openvino.utils.node_factory import NodeFactory

from deployments.engines import Precision
from engine.attention import AttentionKernel, CompiledGraph, Inputs
from engine.attention_metadata import AttentionMetadata
from engine.in_place import moves, with_room
from engine.manifest import EngineError
from engine.native.build import library_path
from engine.native.library import (
    CachePrecision,
    CacheShape,
    NativeCache,
    StepRequest,
    instructions,
    new_number,
)
from engine.paged_attention import DOMAIN, OPERATOR, conversion
from engine.runner import BLOCK_SIZE, SequenceInput

KernelName = Literal["native", "openvino"]
WHY_NOT = (
    "the kit's kernel is not compiled, or the processor lacks AVX2: run `python -m engine.native.build`, "
    "which says what is missing"
)
# What is fastest without a loss. int4 and int8 engines round activations as coarsely as an int8 cache rounds its rows.
_NATIVE_PRECISIONS: Mapping[Precision, CachePrecision] = {"int4": "int8", "int8": "int8", "fp32": "fp32"}
_OPENVINO_PRECISIONS: Mapping[Precision, CachePrecision] = {"int4": "fp16", "int8": "fp16", "fp32": "fp32"}


@dataclass(frozen=True, slots=True)
class Attention:
    """What a spec says about attention.

    Attributes:
        kernel: None: the kit's own where it was compiled and the processor can run it.
        cache_precision: None: what goes with the weights.
    """

    kernel: KernelName | None = None
    cache_precision: CachePrecision | None = None


ANY_ATTENTION = Attention()


class NativeKernel:
    """The kit's own kernel: reads each cache block once for all rows of a request; see `engine/native/attention.hpp`.

    A tree's rows lie where `engine.in_place` says.

    Args:
        num_blocks: cache blocks for requests.
        branch_blocks: cache blocks for what trees have more than their requests have room for.
        precision: of the cache.
        owner: whose cache it uses; None: one of its own.
    """

    name: KernelName = "native"
    most_weighed = 16  # kTileRows of `engine/native/step.hpp`

    def __init__(
        self,
        num_blocks: int,
        branch_blocks: int,
        precision: CachePrecision,
        owner: "NativeKernel | None" = None,
    ) -> None:
        self.cache: NativeCache
        self.precision = precision
        self._num_blocks = num_blocks
        self.private_blocks: Sequence[int] = range(num_blocks, num_blocks + branch_blocks)
        self._owner = owner
        self._number = new_number() if owner is None else owner.cache.number
        self._layers: set[int] = set()
        self._heads = (1, 1)
        self._factory = NodeFactory()
        self._factory.add_extension(str(library_path()))

    @property
    def description(self) -> Mapping[str, str]:
        """See `AttentionKernel`."""
        return _described(self, instructions() or "")

    def extension(self, *, padding: bool) -> ConversionExtension:
        """See `AttentionKernel`; rows need no padding here."""
        return ConversionExtension(OPERATOR, DOMAIN, self._operator)

    def spares_padding(self, threads: int, smallest: int) -> bool:
        """There are none to be spared."""
        return False

    def warm_up(self, tokens: int, longest: int) -> Sequence[SequenceInput]:
        """See `AttentionKernel`."""
        return self.equal_rows(tokens)

    def equal_rows(self, rows: int) -> Sequence[SequenceInput]:
        """See `AttentionKernel`; what is written is read by nobody."""
        return [SequenceInput([0] * rows, 0, range(-(-rows // BLOCK_SIZE)))]

    def room(self, longest: int) -> int:
        """See `AttentionKernel`."""
        return min(longest, self._num_blocks * BLOCK_SIZE)

    def bind(self, graphs: Sequence[CompiledGraph]) -> None:
        """Operators find the cache by its number."""
        kv_heads, head_size = self._heads
        blocks = self._num_blocks + len(self.private_blocks)
        shape = CacheShape(len(self._layers), blocks, kv_heads, head_size, self.precision)
        if self._owner is None:
            self.cache = NativeCache(shape, self._number)
            return
        _check_same(shape, self._owner.cache.shape)
        self.cache = self._owner.cache

    def sharing(self) -> "NativeKernel":
        """See `AttentionKernel`; operators of both networks name the same cache."""
        return NativeKernel(self._num_blocks, len(self.private_blocks), self.precision, self)

    def step(self, batch: Sequence[SequenceInput], tokens: int, private: Iterator[int]) -> "NativeStep":
        """See `AttentionKernel`.

        Raises:
            NativeError: the step does not fit the cache.
        """
        placed = with_room(batch, private)
        self.cache.begin_step([_request(item) for item in placed])
        counts = [len(item.tokens) for item in batch]
        padding = max(0, tokens - sum(counts))
        ids = [token for item in batch for token in item.tokens]
        positions = [position for item in batch for position in item.positions]
        first = 0
        wanted: list[int] = []
        for item, count in zip(batch, counts, strict=True):
            wanted.extend(range(first + item.logits_from, first + count))
            first += count
        filled = [0] * padding
        wanted.extend(range(first, first + padding))
        inputs: Inputs = {
            "input_ids": np.array(ids + filled, np.int64),
            "position_ids": np.array(positions + filled, np.int64),
            "logit_rows": np.array(wanted, np.int64),
        }
        return NativeStep(inputs, padding, self.cache, placed)

    def _operator(self, node: NodeContext) -> list[ov.Output]:
        queries, keys, values = (node.get_input(index) for index in range(3))
        layer = int(node.get_input(3).get_node().get_friendly_name().rpartition(".")[2])
        self._layers.add(layer)
        self._heads = node.get_attribute("kv_heads"), node.get_attribute("head_dim")
        attributes = {
            "cache": self._number,
            "layer": layer,
            "window": node.get_attribute("sliding_window"),
            "scale": node.get_attribute("scale"),
        }
        return [self._factory.create(OPERATOR, [queries, keys, values], attributes).output(0)]


@dataclass(slots=True)
class NativeStep:
    """See `KernelStep`."""

    inputs: Inputs
    padding: int
    _cache: NativeCache
    _batch: Sequence[SequenceInput]
    _weights: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def ran(self) -> None:
        """See `KernelStep`; the cache knows weights of the last step alone."""
        if any(item.weighed for item in self._batch):
            self._weights = self._cache.block_weights()

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `KernelStep`."""
        first = sum(len(item.blocks) for item in self._batch[:index])
        return self._weights[first : first + len(self._batch[index].blocks)]

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """See `KernelStep`."""
        pairs = moves(self._batch[index], kept)
        self._cache.move_rows([(*source, *target) for source, target in pairs])


class OpenVinoKernel:
    """OpenVINO's kernel, which reads the cache once for each row; see `engine.attention_metadata`.

    Args:
        num_blocks: cache blocks for requests.
        branch_blocks: cache blocks for the branches of the trees of one step; 0: chains only.
        precision: of the cache.
        owner: whose cache it uses; None: one of its own.
    """

    name: KernelName = "openvino"
    most_weighed = 0

    def __init__(
        self,
        num_blocks: int,
        branch_blocks: int,
        precision: CachePrecision,
        owner: "OpenVinoKernel | None" = None,
    ) -> None:
        self.precision = precision
        self._owner = owner
        self.caches: NDArray[np.generic]
        self._num_blocks = num_blocks
        self.private_blocks: Sequence[int] = range(num_blocks + 1, num_blocks + 1 + branch_blocks)
        self._sequences = 1

    @property
    def description(self) -> Mapping[str, str]:
        """See `AttentionKernel`."""
        return _described(self, "any")

    def extension(self, *, padding: bool) -> ConversionExtension:
        """See `AttentionKernel`."""
        return conversion(padding=padding)

    def spares_padding(self, threads: int, smallest: int) -> bool:
        """Where there are no branches, and each step has as many sequences as there are threads."""
        return not self.private_blocks and threads <= smallest

    def warm_up(self, tokens: int, longest: int) -> Sequence[SequenceInput]:
        """See `AttentionKernel`: buffers, which grow with the longest context so far, cost 4 ms whenever they do."""
        blocks = [self._num_blocks] * -(-longest // BLOCK_SIZE)
        return [SequenceInput([0], longest - 1, blocks)] * tokens

    def equal_rows(self, rows: int) -> Sequence[SequenceInput]:
        """See `AttentionKernel`."""
        return [SequenceInput([0], 0, [self._num_blocks])] * rows

    def room(self, longest: int) -> int:
        """See `AttentionKernel`; they all use the block of the padding."""
        return sys.maxsize

    def bind(self, graphs: Sequence[CompiledGraph]) -> None:
        """Rows of all layers in one array, [layers * 2, blocks, heads, block size, head size].

        Zero pages are mapped on first use, so a large cache costs what it holds.
        """
        ports = graphs[0].cache_ports()
        blocks = self._num_blocks + 1 + len(self.private_blocks)
        shape = (len(ports), blocks, *(ports[0].partial_shape[axis].get_length() for axis in (1, 2, 3)))
        kind = ports[0].element_type.to_dtype()
        if self._owner is None:
            self.caches = np.zeros(shape, kind)
        else:
            self.caches = self._owner.caches
            _check_same((shape, np.dtype(kind)), (self.caches.shape, self.caches.dtype))
        self._sequences = graphs[0].threads
        for graph in graphs:
            graph.use_caches(self.caches)

    def sharing(self) -> "OpenVinoKernel":
        """See `AttentionKernel`."""
        return OpenVinoKernel(self._num_blocks, len(self.private_blocks), self.precision, self)

    def step(self, batch: Sequence[SequenceInput], tokens: int, private: Iterator[int]) -> "OpenVinoStep":
        """See `AttentionKernel`."""
        metadata = AttentionMetadata(BLOCK_SIZE, private, padding_block=self._num_blocks)
        for item in batch:
            metadata.add(item)
        if metadata.copies:
            sources, targets = (list(blocks) for blocks in zip(*metadata.copies, strict=True))
            self.caches[:, targets] = self.caches[:, sources]
        inputs = metadata.tensors(tokens, self._sequences)
        return OpenVinoStep(inputs, metadata.padding, self.caches, metadata)


@dataclass(frozen=True, slots=True)
class OpenVinoStep:
    """See `KernelStep`."""

    inputs: Inputs
    padding: int
    _caches: NDArray[np.generic]
    _metadata: AttentionMetadata

    def ran(self) -> None:
        """See `KernelStep`."""

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `KernelStep`."""
        raise NotImplementedError("OpenVINO's kernel says nothing of its weights for tokens that decode")

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """See `KernelStep`."""
        moves = self._metadata.moves(index, kept)
        if moves:
            (from_blocks, from_rows), (to_blocks, to_rows) = (
                np.array(places).T for places in zip(*moves, strict=True)
            )
            self._caches[:, to_blocks, :, to_rows] = self._caches[:, from_blocks, :, from_rows]


def open_kernel(
    how: Attention, *, weights: Precision, num_blocks: int, branch_blocks: int
) -> AttentionKernel:
    """A kernel with an empty cache.

    Args:
        how: what the spec says about it.
        weights: precision of the network, which the cache's goes with where the spec says nothing.
        num_blocks: cache blocks for requests.
        branch_blocks: cache blocks for the branches of the trees of one step; 0: chains only.

    Raises:
        EngineError: it cannot be had.
    """
    kernel = NativeKernel if chosen_kernel(how) == "native" else OpenVinoKernel
    return kernel(num_blocks, branch_blocks, chosen_precision(how, weights))


def chosen_precision(how: Attention, weights: Precision) -> CachePrecision:
    """The precision of the cache.

    Raises:
        EngineError: see `chosen_kernel`.
    """
    native = chosen_kernel(how) == "native"
    return how.cache_precision or (_NATIVE_PRECISIONS if native else _OPENVINO_PRECISIONS)[weights]


def chosen_kernel(how: Attention) -> KernelName:
    """The kernel that serves on this machine.

    Raises:
        EngineError: the one that is asked for cannot be had.
    """
    runs = instructions() is not None
    if how.kernel == "native" and not runs:
        raise EngineError(
            f"engine.attention_kernel is native, but {WHY_NOT}; or leave it out: OpenVINO's serves"
        )
    kernel: KernelName = "openvino" if how.kernel == "openvino" or not runs else "native"
    if kernel == "openvino" and how.cache_precision == "int8":
        reason = WHY_NOT if how.kernel is None else "engine.attention_kernel is openvino"
        raise EngineError(
            f"engine.kv_cache_precision is int8, which only the kit's own attention kernel has, but {reason}; "
            "fp16 and fp32 are there with either kernel"
        )
    return kernel


def _check_same(own: object, owners: object) -> None:
    if own != owners:
        raise EngineError(
            f"a network with a cache of {own} cannot use one of {owners}; run `drafthouse build` for both"
        )


def _described(kernel: AttentionKernel, instructions: str) -> Mapping[str, str]:
    return {"kernel": kernel.name, "instructions": instructions, "kv_cache_precision": kernel.precision}


def _request(item: SequenceInput) -> StepRequest:
    parents = item.parents and (-1, *item.parents[1:])
    return StepRequest(len(item.tokens), item.past, item.blocks, parents, item.weighed)
