"""Compiled networks on OpenVINO: the paged one with its KV cache (targets, draft models, EAGLE), and plain ones.

Settings, with their reasons:

* `INFERENCE_PRECISION_HINT=f32`: activations stay fp32, so a token's result does not depend on the machine.
* `DYNAMIC_QUANTIZATION_GROUP_SIZE`: int8 engines quantise activations in groups within a row, so a token's
  result does not depend on its neighbours in the batch, and eight tokens cost little more than one.
* `KV_CACHE_PRECISION`: int8 engines keep cache rows in fp16 (a batch of eight steps a tenth faster than with
  fp32 rows), fp32 engines in fp32.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engine.buckets import bucket_of, buckets_for
from engine.layout import Layout
from engine.manifest import CompiledManifest, EngineError
from engine.paged_attention import conversion
from engine.runner import BLOCK_SIZE, SequenceInput

_PER_TOKEN = ("input_ids", "position_ids", "token_rows", "hidden")
_LARGEST_GROUP = 64  # finer groups keep more of the activations; coarser ones (128, 192) measured no faster

Settings = Mapping[str, object]


class OpenVinoBackend:
    """A Backend (see `engine.backend`) on so many CPU threads (0: all)."""

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads

    def plain(self, path: Path, manifest: CompiledManifest) -> "PlainGraph":
        """See `engine.backend.Backend.plain`."""
        return PlainGraph(path, self._settings(manifest))

    def paged(
        self,
        path: Path,
        manifest: CompiledManifest,
        *,
        outputs: Sequence[str],
        num_blocks: int,
        branch_blocks: int,
    ) -> "PagedGraph":
        """See `engine.backend.Backend.paged`."""
        return PagedGraph(
            path,
            outputs=outputs,
            num_blocks=num_blocks,
            branch_blocks=branch_blocks,
            longest=manifest.max_sequence_length or BLOCK_SIZE,
            how=self._settings(manifest),
        )

    def _settings(self, manifest: CompiledManifest) -> Settings:
        return settings(precision=manifest.precision, widths=manifest.widths, threads=self._threads)


def settings(*, precision: str, widths: Sequence[int], threads: int) -> Settings:
    """How a network is compiled.

    Args:
        precision: "int8" or "fp32".
        widths: numbers of columns of what its matrices are multiplied with.
        threads: CPU threads (0: all).
    """
    quantised = precision == "int8"
    common = math.gcd(*widths)
    group = max((size for size in range(32, _LARGEST_GROUP + 1, 32) if common % size == 0), default=32)
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "KV_CACHE_PRECISION": "f16" if quantised else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if quantised else 0,
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
    }


class PlainGraph:
    """A network without state; see `speculators.graphs.Graph`."""

    def __init__(self, path: Path, how: Settings) -> None:
        """Load an ONNX file.

        Raises:
            EngineError: it is damaged.
        """
        core = ov.Core()
        self._compiled = _Compiled(core, _read(core, path), how)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name; valid until the next call."""
        self._compiled.infer({name: np.ascontiguousarray(values) for name, values in inputs.items()})
        return {name: self._compiled.output(name) for name in self._compiled.outputs}


class PagedGraph:
    """A network over a paged KV cache.

    Args:
        path: an ONNX file of `build.graph`.
        outputs: those that are wanted.
        num_blocks: cache blocks for requests.
        branch_blocks: cache blocks for the branches of the trees of one step; 0: chains only.
        longest: most tokens of a request.
        how: from `settings`.

    Raises:
        EngineError: the file is damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        outputs: Sequence[str],
        num_blocks: int,
        branch_blocks: int,
        longest: int,
        how: Settings,
    ) -> None:
        weights = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        core, model = _paged(path, outputs, fillers=True)
        self._for_any = _Compiled(core, model, how)
        self._sequences = self._for_any.threads
        sizes = buckets_for(weights)
        if sizes and not branch_blocks and self._sequences <= sizes[0]:
            core, model = _paged(path, outputs, fillers=False)
        self._buckets = {size: _Compiled(core, _of_tokens(model, size), how) for size in sizes}
        self._last = self._for_any
        self._num_blocks = num_blocks
        self._private_blocks = range(num_blocks + 1, num_blocks + 1 + branch_blocks)
        self.caches = self._allocate_caches()
        self._layout = self._new_layout()
        self._warm_up(longest)

    def forward(self, batch: Sequence[SequenceInput], hidden: NDArray[np.float32] | None = None) -> None:
        """Run one step; `output` has what came out.

        Args:
            batch: the inputs of all requests.
            hidden: [tokens, H], for networks that read hidden states.
        """
        self._layout = self._new_layout()
        for item in batch:
            self._layout.add(item)
        if self._layout.copies:
            sources, targets = (list(blocks) for blocks in zip(*self._layout.copies, strict=True))
            self.caches[:, targets] = self.caches[:, sources]
        bucket = bucket_of(self._layout.num_tokens, self._buckets)
        inputs = self._layout.tensors(bucket or 2, self._sequences)
        if hidden is not None:
            filler = np.zeros((len(inputs["input_ids"]) - len(hidden), hidden.shape[1]), np.float32)
            inputs["hidden"] = np.concatenate([hidden, filler])
        self._last = self._buckets[bucket] if bucket else self._for_any
        self._last.infer(inputs)

    def output(self, name: str) -> NDArray[Any]:
        """An output of the last step; valid until the next."""
        values = self._last.output(name)
        return values[: len(values) - self._layout.padding]

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""
        moves = self._layout.moves(index, kept)
        if moves:
            (from_blocks, from_rows), (to_blocks, to_rows) = (
                np.array(places).T for places in zip(*moves, strict=True)
            )
            self.caches[:, to_blocks, :, to_rows] = self.caches[:, from_blocks, :, from_rows]

    def _warm_up(self, longest: int) -> None:
        """Run everything once at the end of the longest context, on fillers.

        The first run of a graph takes ten times as long as the next, and the attention kernel's buffers, which grow
        with the longest context so far, cost 4 ms whenever they do.
        """
        blocks = [self._num_blocks] * math.ceil(longest / BLOCK_SIZE)
        for size, compiled in ((2, self._for_any), *self._buckets.items()):
            layout = self._new_layout()
            for _ in range(size):
                layout.add(SequenceInput([0], longest - 1, blocks))
            compiled.infer({**layout.tensors(size, self._sequences), **compiled.no_hidden(size)})

    def _new_layout(self) -> Layout:
        return Layout(BLOCK_SIZE, self._private_blocks, filler_block=self._num_blocks)

    def _allocate_caches(self) -> NDArray[np.generic]:
        """Rows of all layers in one array, [layers * 2, blocks, heads, block size, head size].

        Zero pages are mapped on first use, so a large cache costs what it holds.
        """
        ports = self._for_any.cache_ports()
        blocks = self._private_blocks.stop
        shape = (blocks, *(ports[0].partial_shape[axis].get_length() for axis in (1, 2, 3)))
        caches = np.zeros((len(ports), *shape), ports[0].element_type.to_dtype())
        for compiled in (self._for_any, *self._buckets.values()):
            compiled.use_caches(caches)
        return caches


class _Compiled:
    """A compiled model with its one request.

    Attributes:
        outputs: names.
        threads: on which it runs.
    """

    def __init__(self, core: ov.Core, model: ov.Model, how: Settings) -> None:
        compiled = core.compile_model(model, "CPU", how)
        self.threads: int = compiled.get_property("INFERENCE_NUM_THREADS")
        self._request = compiled.create_infer_request()
        self._ports = {port.any_name: port for port in compiled.inputs}
        self.outputs = [name for port in compiled.outputs for name in port.names]

    def cache_ports(self) -> list[Any]:
        """Inputs that are caches, in the order of the model."""
        return [port for name, port in self._ports.items() if "_cache." in name]

    def use_caches(self, caches: NDArray[np.generic]) -> None:
        """Read and write these from now on, one for each port."""
        for port, cache in zip(self.cache_ports(), caches, strict=True):
            self._request.set_tensor(port, ov.Tensor(cache, shared_memory=True))

    def no_hidden(self, tokens: int) -> dict[str, NDArray[np.float32]]:
        """Zeros for the input `hidden`, where there is one."""
        if "hidden" not in self._ports:
            return {}
        return {"hidden": np.zeros((tokens, self._ports["hidden"].partial_shape[1].get_length()), np.float32)}

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Run on those of the inputs that the model has."""
        for name, port in self._ports.items():
            if name in inputs:
                self._request.set_tensor(port, ov.Tensor(inputs[name], shared_memory=True))
        # `InferRequest.infer` would do the same, half a millisecond slower for large graphs.
        self._request.start_async()
        self._request.wait()

    def output(self, name: str) -> NDArray[Any]:
        """An output of the last run."""
        values: NDArray[Any] = self._request.get_tensor(name).data
        return values


def _read(core: ov.Core, path: Path) -> ov.Model:
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise EngineError(f"{path} is damaged ({error}); run `drafthouse build` again") from error


def _paged(path: Path, outputs: Sequence[str], *, fillers: bool) -> tuple[ov.Core, ov.Model]:
    """The model to be compiled for a paged cache; see `engine.paged_attention.conversion`."""
    core = ov.Core()
    core.add_extension(conversion(fillers=fillers))
    return core, _with_free_caches(_with_outputs(_read(core, path), outputs))


def _with_outputs(model: ov.Model, names: Sequence[str]) -> ov.Model:
    """The part of the model that the named outputs need, and the inputs of that part."""
    results = {name: result for result in model.get_results() for name in result.output(0).get_names()}
    read = [port for port in model.inputs if port.get_target_inputs()]
    once = dict.fromkeys(names)  # OpenVINO crashes on a result that is there twice
    return ov.Model(
        [results[name] for name in once], [port.get_node() for port in read], model.get_friendly_name()
    )


def _with_free_caches(model: ov.Model) -> ov.Model:
    """Leave layout and type of the caches to the plugin, which sets them from KV_CACHE_PRECISION."""
    for parameter in model.get_parameters():
        if "_cache." in parameter.get_friendly_name():
            parameter.set_element_type(ov.Type.dynamic)
            parameter.set_partial_shape(ov.PartialShape([-1, -1, -1, -1]))
    model.validate_nodes_and_infer_types()
    return model


def _of_tokens(model: ov.Model, tokens: int) -> ov.Model:
    """A copy for so many tokens."""
    fixed = model.clone()
    shapes = {port: port.get_partial_shape() for port in fixed.inputs if port.any_name in _PER_TOKEN}
    for shape in shapes.values():
        shape[0] = tokens
    fixed.reshape(shapes)
    return fixed
