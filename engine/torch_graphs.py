"""Compiled networks on PyTorch, with the interfaces of `engine.openvino_graphs`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.backend import PagedNetwork
from engine.in_place import moves, with_room
from engine.manifest import CompiledManifest, EngineError
from engine.runner import BLOCK_SIZE, BestLogits, SequenceInput
from engine.torch_attention import PagedCaches, StepAttention, has_kernel
from engine.torch_operators import Tensor, TorchOperators
from engine.torch_replays import Replay, StepInputs, new_pool
from engine.torch_steps import Step


def best_device() -> torch.device:
    """A CUDA device if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TorchBackend:
    """A Backend (see `engine.backend`): fp32 on a CPU, fp32 or for quantised engines bf16 on a CUDA device."""

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
        return torch.bfloat16 if half else torch.float32


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

    Logits of a token do depend on the shape of its step, in the last bits: cuBLAS picks its kernels by shape. A tree's
    rows lie where `engine.in_place` says.
    """

    buckets: Sequence[int] = ()
    one_kind_of_rows = False
    gives_best = True
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
        names = [name for name in shapes if name.startswith("key_cache.")]
        heads, width = shapes[names[0]][1], shapes[names[0]][3]
        blocks = num_blocks + branch_blocks
        self._caches = PagedCaches(names, blocks, (heads, width), self._device, dtype)
        self._kernel, self._pool = has_kernel(self._device), new_pool(self._device)
        self._private_blocks = range(num_blocks, blocks)
        self._batch: list[SequenceInput] = []
        self._moves: list[tuple[int, int]] = []
        self._outputs: dict[str, Tensor] = {}
        self._replays: dict[tuple[int, ...], Replay] = {}

    def forward(self, batch: Sequence[SequenceInput], hidden: NDArray[np.float32] | None = None) -> None:
        """Run one step; see `engine.openvino_graphs.PagedGraph.forward`."""
        self._batch = with_room(batch, self._private_blocks)
        step = Step.of(self._batch, hidden, padding_row=self._caches.padding_row)
        if self._moves:
            sources, targets = zip(*self._moves, strict=True)
            self._caches.move(sources, targets)
            self._moves = []
        found = self._replay(step) if step.padded else self._run(step)
        self._outputs = {
            name: values[: step.tokens if name.startswith("hidden.") else step.wanted]
            for name, values in found.items()
        }

    @property
    def attention(self) -> Mapping[str, str]:
        """See `engine.backend.PagedNetwork`."""
        precision = "bf16" if self._dtype == torch.bfloat16 else "fp32"
        return {
            "kernel": "triton" if self._kernel else "torch",
            "instructions": self._device.type,
            "kv_cache_precision": precision,
        }

    def output(self, name: str) -> NDArray[Any]:
        """An output of the last step; what nobody asks for stays on the device."""
        return _array(self._outputs[name])

    def best(self, name: str) -> BestLogits:
        """The greatest of each row of an output of the last step, found on the device."""
        rows = self._outputs[name]
        tokens = rows.argmax(-1, keepdim=True)  # NaN is the greatest, as for numpy
        return BestLogits(_array(tokens[:, 0]), _array(rows.gather(-1, tokens)[:, 0]))

    def keeps_bits(self, rows: int) -> bool:
        """See `engine.backend.PagedNetwork`; here nothing is promised, whatever the number."""
        return True

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `engine.runner.Runner.block_weights`; attention as a whole has none."""
        raise NotImplementedError("PyTorch's attention says nothing of its weights")

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`. Rows of all requests are moved at once."""
        for places in moves(self._batch[index], kept):
            source, target = (block * BLOCK_SIZE + row for block, row in places)
            self._moves.append((source, target))

    def _run(self, step: Step) -> dict[str, Tensor]:
        inputs = {name: torch.from_numpy(values).to(self._device) for name, values in step.inputs.items()}
        if step.hidden is not None:
            inputs["hidden"] = _tensor(step.hidden, self._device, self._dtype)
        return self._operators.run(inputs, self._attention(inputs, step.groups))

    def _attention(self, inputs: Mapping[str, Tensor], groups: int) -> StepAttention:
        return StepAttention(self._caches, inputs, groups, kernel=self._kernel)

    def _replay(self, step: Step) -> dict[str, Tensor]:
        shape = tuple(size for values in step.inputs.values() for size in values.shape)
        if shape not in self._replays:
            inputs = StepInputs(step, self._device, self._dtype)
            self._replays[shape] = Replay(
                inputs,
                lambda tensors: self._operators.run(tensors, self._attention(tensors, 1)),
                self._pool,
            )
        return self._replays[shape].run(step)


def _tensor(values: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.array(values))
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _array(tensor: Tensor) -> NDArray[Any]:
    """A copy, in fp32 if it is not of integers. It crosses in its own precision, to memory that stays where it is."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    host.copy_(tensor)
    values: NDArray[Any] = (host.float() if host.is_floating_point() else host).numpy()
    return values
