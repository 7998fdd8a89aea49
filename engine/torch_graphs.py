"""Compiled networks on PyTorch, with the interfaces of `engine.openvino_graphs`.

On a CUDA device, steps without prompts run as CUDA graphs: a step of a small model is hundreds of kernels of a few
microseconds, so launching them one by one takes longer than running them. Shapes are rounded up to powers of two, with
a filler token that writes to a block of its own, and one graph is captured for each shape that occurs. On a CPU the
same padded step is simply run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.backend import PagedNetwork
from engine.layout import Layout
from engine.manifest import CompiledManifest, EngineError
from engine.runner import BLOCK_SIZE, SequenceInput
from engine.torch_operators import Tensor, TorchOperators


def best_device() -> torch.device:
    """A CUDA device if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TorchBackend:
    """A Backend (see `engine.backend`): fp32 on a CPU, fp32 or for quantised engines fp16 on a CUDA device."""

    def plain(self, path: Path, manifest: CompiledManifest) -> "TorchPlainGraph":
        """See `engine.backend.Backend.plain`."""
        return TorchPlainGraph(path, self._dtype(manifest))

    def paged(
        self,
        path: Path,
        manifest: CompiledManifest,
        *,
        outputs: Sequence[str],
        num_blocks: int,
        branch_blocks: int,
        cache_of: PagedNetwork | None = None,
    ) -> "TorchPagedGraph":
        """See `engine.backend.Backend.paged`."""
        if cache_of is not None:
            raise EngineError("networks that share a KV cache run on engine.backend: openvino alone")
        return TorchPagedGraph(
            path,
            outputs=outputs,
            num_blocks=num_blocks,
            branch_blocks=branch_blocks,
            dtype=self._dtype(manifest),
        )

    def _dtype(self, manifest: CompiledManifest) -> torch.dtype:
        half = manifest.precision != "fp32" and best_device().type == "cuda"
        return torch.float16 if half else torch.float32


class TorchPlainGraph:
    """A network without state; see `speculators.graphs.Graph`."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self._device, self._dtype = best_device(), dtype
        self._operators = TorchOperators(path, None, self._device, dtype)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        tensors = {name: _tensor(values, self._device, self._dtype) for name, values in inputs.items()}
        return {name: _array(value) for name, value in self._operators.run(tensors).items()}


class TorchPagedGraph:
    """A network over a paged KV cache; see `engine.openvino_graphs.PagedGraph`.

    Logits of a token do depend on the shape of its step, in the last bits: cuBLAS picks its kernels by shape.
    """

    one_kind_of_rows = False
    most_weighed = 0

    def __init__(
        self,
        path: Path,
        *,
        outputs: Sequence[str],
        num_blocks: int,
        branch_blocks: int,
        dtype: torch.dtype,
    ) -> None:
        self._device, self._dtype = best_device(), dtype
        self._operators = TorchOperators(path, outputs, self._device, dtype)
        shapes = self._operators.input_shapes
        self._names = [name for name in shapes if "_cache." in name]
        self._num_blocks = num_blocks
        self._private_blocks = range(num_blocks + 1, num_blocks + 1 + branch_blocks)
        shape = (len(self._names), self._private_blocks.stop, *shapes[self._names[0]][1:])
        self._caches = torch.zeros(shape, dtype=dtype, device=self._device)
        self._layout = self._new_layout()
        self._outputs: dict[str, NDArray[Any]] = {}
        self._replays: dict[tuple[int, ...], _Replay] = {}

    def forward(self, batch: Sequence[SequenceInput], hidden: NDArray[np.float32] | None = None) -> None:
        """Run one step; see `engine.openvino_graphs.PagedGraph.forward`."""
        self._layout = self._new_layout()
        for item in batch:
            self._layout.add(item)
        if self._layout.copies:
            sources, targets = (list(blocks) for blocks in zip(*self._layout.copies, strict=True))
            self._caches[:, targets] = self._caches[:, sources]
        step = _Step.of(self._layout.tensors(rows=2, sequences=1), hidden)
        if step.whole_sequences:
            inputs = {name: _tensor(value, self._device, self._dtype) for name, value in step.inputs.items()}
            found = self._operators.run(inputs, _Attention(self._cache, inputs, step.lengths))
        else:
            found = self._replay(step)
        rows = {name: _array(value) for name, value in found.items()}
        wanted = len(step.inputs["logit_rows"]) - self._layout.padding
        self._outputs = {
            name: values if name.startswith("hidden.") else values[:wanted] for name, values in rows.items()
        }

    @property
    def attention(self) -> Mapping[str, str]:
        """See `engine.backend.PagedNetwork`."""
        precision = "bf16" if self._dtype == torch.bfloat16 else "fp32"
        return {"kernel": "torch", "instructions": self._device.type, "kv_cache_precision": precision}

    def output(self, name: str) -> NDArray[Any]:
        """An output of the last step."""
        return self._outputs[name]

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `engine.runner.Runner.block_weights`; attention as a whole has none."""
        raise NotImplementedError("PyTorch's attention says nothing of its weights")

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""
        moves = self._layout.moves(index, kept)
        if moves:
            (from_blocks, from_rows), (to_blocks, to_rows) = (
                torch.tensor(places, device=self._device).T for places in zip(*moves, strict=True)
            )
            self._caches[:, to_blocks, :, to_rows] = self._caches[:, from_blocks, :, from_rows]

    def _replay(self, step: "_Step") -> dict[str, Tensor]:
        padded = step.padded(self._num_blocks)
        shape = tuple(size for values in padded.values() for size in values.shape)
        if shape not in self._replays:
            inputs = {name: _tensor(values, self._device, self._dtype) for name, values in padded.items()}
            attention = _Attention(self._cache, inputs, None)
            self._replays[shape] = _Replay(inputs, lambda: self._operators.run(inputs, attention))
        return self._replays[shape].run(padded)

    def _cache(self, name: str) -> tuple[Tensor, Tensor]:
        """Keys and values of the layer whose key cache has this name."""
        return self._caches[self._names.index(name)], self._caches[
            self._names.index(name.replace("key", "value"))
        ]

    def _new_layout(self) -> Layout:
        return Layout(BLOCK_SIZE, self._private_blocks, filler_block=self._num_blocks)


@dataclass(frozen=True)
class _Step:
    """The inputs of a step as PyTorch takes them.

    `inputs` has, beside those of the graph, for each row of attention the place that it is written to (`places`) and
    its position (`entered_positions`), and for each sequence its blocks (`tables`, padded). `lengths` are the
    sequences' new rows.
    """

    inputs: dict[str, NDArray[Any]]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]], hidden: NDArray[np.float32] | None) -> "_Step":
        begins, block_begins = tensors["subsequence_begins"], tensors["block_indices_begins"]
        lengths = np.diff(begins).astype(np.int64)
        counts = np.diff(block_begins)
        tables = np.zeros((len(counts), counts.max()), np.int64)
        for row, count in enumerate(counts):
            tables[row, :count] = tensors["block_indices"][block_begins[row] : block_begins[row + 1]]
        sequence = np.repeat(np.arange(len(lengths)), lengths)
        positions = (
            tensors["past_lens"][sequence] + np.arange(len(sequence)) - begins[:-1][sequence]
        ).astype(np.int64)
        places = np.stack([tables[sequence, positions // BLOCK_SIZE], positions % BLOCK_SIZE])
        names = ("input_ids", "position_ids", "attention_rows", "token_rows", "logit_rows")
        inputs = {name: tensors[name] for name in names}
        inputs |= {"places": places, "entered_positions": positions, "tables": tables}
        if hidden is not None:
            filler = np.zeros((len(tensors["input_ids"]) - len(hidden), hidden.shape[1]), np.float32)
            inputs["hidden"] = np.concatenate([hidden, filler])
        return cls(inputs, lengths)

    @property
    def whole_sequences(self) -> bool:
        """Whether a sequence has several new rows: a prompt is read."""
        return bool((self.lengths > 1).any())

    def padded(self, filler_block: int) -> dict[str, NDArray[Any]]:
        """The inputs with sizes rounded up; what is added reads and writes the filler's block alone."""
        tokens, entered = len(self.inputs["input_ids"]), len(self.lengths)
        sizes = {
            **dict.fromkeys(("input_ids", "position_ids", "token_rows", "hidden"), _rounded(tokens)),
            **dict.fromkeys(("attention_rows", "entered_positions", "tables"), _rounded(entered)),
            "logit_rows": _rounded(len(self.inputs["logit_rows"])),
        }
        wide = {
            **self.inputs,
            "tables": _extended(self.inputs["tables"], _rounded(self.inputs["tables"].shape[1]), 1),
        }
        padded = {
            name: _extended(values, sizes[name], 0) for name, values in wide.items() if name != "places"
        }
        padded["tables"][entered:] = filler_block
        places = _extended(self.inputs["places"], _rounded(entered), 1)
        places[0, entered:] = filler_block
        return {**padded, "places": places}


class _Attention:
    """Attention over the cache, for the inputs of one step.

    Args:
        cache: keys and values of a layer by the name of its key cache.
        inputs: those of the step.
        lengths: new rows of each sequence; None: one each.
    """

    def __init__(
        self,
        cache: Callable[[str], tuple[Tensor, Tensor]],
        inputs: Mapping[str, Tensor],
        lengths: NDArray[np.int64] | None,
    ) -> None:
        self._cache, self._inputs, self._lengths = cache, inputs, lengths

    def __call__(self, attributes: Mapping[str, Any], new: Sequence[Tensor], name: str) -> Tensor:
        """Write the new rows, then read: every row sees those of its blocks up to its own position."""
        inputs, heads, width = self._inputs, attributes["kv_heads"], attributes["head_dim"]
        queries, keys, values = (part[inputs["attention_rows"]] for part in new)
        blocks, rows = inputs["places"]
        layer = self._cache(name)
        for cache, part in zip(layer, (keys, values), strict=True):
            cache[blocks, :, rows] = part.view(-1, heads, width)
        grouped = queries.view(len(queries), heads, -1, width)
        tables, positions = inputs["tables"], inputs["entered_positions"]
        if self._lengths is None:
            mixed = _attend(grouped[:, None], positions[:, None], layer, tables, attributes)
        else:
            ends = np.cumsum(self._lengths).tolist()
            mixed = torch.cat(
                [
                    _attend(
                        grouped[None, end - length : end],
                        positions[None, end - length : end],
                        layer,
                        tables[row : row + 1],
                        attributes,
                    )
                    for row, (length, end) in enumerate(zip(self._lengths.tolist(), ends, strict=True))
                ]
            )
        return mixed.view(len(queries), -1)[inputs["token_rows"]]


def _attend(
    queries: Tensor,
    positions: Tensor,
    layer: tuple[Tensor, Tensor],
    tables: Tensor,
    attributes: Mapping[str, Any],
) -> Tensor:
    """Queries [N, T, key heads, group, width] at positions [N, T] over the blocks of tables [N, M]; [N * T, ...]."""
    keys, values = (part[tables].transpose(1, 2).flatten(2, 3).float() for part in layer)
    scores = torch.einsum("nthgd,nhsd->nhgts", queries.float(), keys) * attributes["scale"]
    place = torch.arange(keys.shape[2], device=keys.device)
    hidden = place > positions[..., None]
    if attributes["sliding_window"]:
        hidden |= place <= positions[..., None] - attributes["sliding_window"]
    shares = torch.softmax(scores.masked_fill(hidden[:, None, None], -torch.inf), dim=-1)
    # Rows that were never written may hold anything, and 0 times that is not always 0.
    readable = (place <= positions.max(1).values[:, None])[:, None, :, None]
    mixed = torch.einsum("nhgts,nhsd->nthgd", shares, values.masked_fill(~readable, 0.0))
    return mixed.to(queries.dtype).flatten(0, 1)


class _Replay:
    """A step of one shape: captured as a CUDA graph on the first run, replayed with other inputs afterwards."""

    def __init__(self, inputs: Mapping[str, Tensor], compute: Callable[[], dict[str, Tensor]]) -> None:
        self._inputs, self._compute = inputs, compute
        self._graph: Any = None
        if next(iter(inputs.values())).is_cuda:
            self._capture()

    def run(self, values: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Outputs for other values of the same shapes; valid until the next run."""
        for name, tensor in self._inputs.items():
            tensor.copy_(torch.from_numpy(values[name]))
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._found

    def _capture(self) -> None:
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # a warm-up on another stream, as capturing demands
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._compute()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = self._compute()


def _rounded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length() if size > 1 else size


def _extended(values: NDArray[Any], size: int, axis: int) -> NDArray[Any]:
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, size - values.shape[axis])
    return np.pad(values, padding)


def _tensor(values: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.array(values))
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _array(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.float() if tensor.is_floating_point() else tensor
    return np.array(plain.cpu().numpy())
