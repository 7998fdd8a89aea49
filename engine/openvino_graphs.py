"""Compiled networks on OpenVINO: the paged one with its KV cache (targets, draft models, EAGLE), and plain ones.

Settings, with their reasons:

* `INFERENCE_PRECISION_HINT=f32`: activations stay fp32, so a token's result does not depend on the machine.
* `DYNAMIC_QUANTIZATION_GROUP_SIZE`: int8 engines quantise activations in groups within a row, so a token's
  result does not depend on its neighbours in the batch, and eight tokens cost little more than one.
* `ENABLE_CPU_PINNING`: a single thread goes where there is room. OpenVINO binds threads to the first processors,
  those of every process to the same: two processes of one thread each took turns on one core, and were half as
  fast. Several threads stay bound: left to themselves, two were no faster than one.
* `KV_CACHE_PRECISION`: of the cache on OpenVINO's own attention kernel; int8 engines keep rows in fp16 there (a
  batch of eight steps a tenth faster than with fp32 rows).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.frontend.onnx import ConversionExtension

from engine.attention import AttentionKernel, KernelStep
from engine.attention_kernels import ANY_ATTENTION, Attention, chosen_kernel, open_kernel
from engine.backend import PagedNetwork
from engine.buckets import bucket_of, buckets_for
from engine.linear_layers import LinearLayers
from engine.manifest import CompiledManifest, EngineError
from engine.rows_at_once import cut, most_rows
from engine.runner import BLOCK_SIZE, BestLogits, SequenceInput

_PER_TOKEN = ("input_ids", "position_ids", "token_rows", "hidden")
_FEWEST_ROWS = 2  # a single row is multiplied by other kernels
_LARGEST_GROUP = 64  # finer groups keep more of the activations; coarser ones (128, 192) measured no faster

# One for the whole process, which lasts as long. Each gives its thread a stack for signals when it compiles, and
# takes it away when the last of its networks has gone; several leave the thread with a stack that is gone, and the
# next signal, Ctrl-C say, crashes the process (`SigAltStackSetup` of OpenVINO's CPU plugin). Reading a model does not
# come to that.
_COMPILER = ov.Core()

Settings = Mapping[str, object]


class OpenVinoBackend:
    """A Backend; see `engine.backend`.

    Args:
        threads: of the CPU (0: all).
        attention: what the spec says about it.
    """

    def __init__(self, threads: int = 0, attention: Attention = ANY_ATTENTION) -> None:
        self._threads, self._attention = threads, attention

    def plain(self, path: Path, manifest: CompiledManifest) -> "PlainGraph":
        """See `engine.backend.Backend.plain`."""
        layers = LinearLayers(native=chosen_kernel(self._attention) == "native")
        return PlainGraph(path, self._settings(manifest), layers)

    def paged(
        self,
        path: Path,
        manifest: CompiledManifest,
        *,
        outputs: Sequence[str],
        num_blocks: int,
        branch_blocks: int,
        cache_of: PagedNetwork | None = None,
    ) -> "PagedGraph":
        """See `engine.backend.Backend.paged`."""
        kernel: AttentionKernel
        if cache_of is None:
            kernel = open_kernel(
                self._attention,
                weights=manifest.precision,
                num_blocks=num_blocks,
                branch_blocks=branch_blocks,
            )
        else:
            assert isinstance(cache_of, PagedGraph), "of this backend"
            kernel = cache_of.kernel.sharing()
        return PagedGraph(
            path,
            outputs=outputs,
            kernel=kernel,
            longest=manifest.max_sequence_length or BLOCK_SIZE,
            how=self._settings(manifest),
        )

    def _settings(self, manifest: CompiledManifest) -> Settings:
        return settings(precision=manifest.precision, widths=manifest.widths, threads=self._threads)


def settings(*, precision: str, widths: Sequence[int], threads: int) -> Settings:
    """How a network is compiled.

    Args:
        precision: "int4", "int8" or "fp32".
        widths: numbers of columns of what its matrices are multiplied with.
        threads: CPU threads (0: all).
    """
    quantised = precision != "fp32"
    common = math.gcd(*widths)
    group = max((size for size in range(32, _LARGEST_GROUP + 1, 32) if common % size == 0), default=32)
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if quantised else 0,
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        **({"ENABLE_CPU_PINNING": False} if threads == 1 else {}),
    }


class PlainGraph:
    """A network without state; see `speculators.graphs.Graph`."""

    def __init__(self, path: Path, how: Settings, layers: LinearLayers) -> None:
        """Load an ONNX file.

        Raises:
            EngineError: it is damaged.
        """
        model = _read(ov.Core(), path)
        layers.take_over(model)
        self._layers = layers
        self._compiled = _Compiled(model, how)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name; valid until the next call."""
        self._compiled.infer({name: np.ascontiguousarray(values) for name, values in inputs.items()})
        return {name: self._compiled.output(name) for name in self._compiled.outputs}


class PagedGraph:
    """A network over a paged KV cache.

    Args:
        path: an ONNX file of `build.graph`.
        outputs: those that are wanted.
        kernel: its attention, with a cache that is not bound yet.
        longest: most tokens of a request.
        how: from `settings`.

    Raises:
        EngineError: the file is damaged.
    """

    gives_best = False

    def __init__(
        self, path: Path, *, outputs: Sequence[str], kernel: AttentionKernel, longest: int, how: Settings
    ) -> None:
        how = {**how, "KV_CACHE_PRECISION": "f32" if kernel.precision == "fp32" else "f16"}
        self._layers = LinearLayers(native=kernel.name == "native")
        model = _paged(path, outputs, kernel.extension(padding=True), self._layers)
        self.kernel = kernel
        self.one_kind_of_rows = kernel.name == "native"
        self.most_weighed = kernel.most_weighed
        self._for_any = _Compiled(model, how)
        sizes = buckets_for(_file_bytes(path) - self._layers.num_bytes)
        self.buckets: Sequence[int] = sizes
        if sizes and kernel.spares_padding(self._for_any.threads, sizes[0]):
            model = _paged(path, outputs, kernel.extension(padding=False), self._layers)
        self._of_size = {size: _Compiled(_of_tokens(model, size), how) for size in sizes}
        kernel.bind([self._for_any, *self._of_size.values()])
        self._runs: list[_Run] = []
        self._places: dict[int, tuple[_Run, int]] = {}
        self._warm_up(longest)
        self._room = kernel.room(longest)
        # One may be padding.
        self.most_rows = most_rows(self._first_row, (_FEWEST_ROWS, *sizes), self._room) - 1

    def forward(self, batch: Sequence[SequenceInput], hidden: NDArray[np.float32] | None = None) -> None:
        """Run one step; `output` has what came out.

        Args:
            batch: the inputs of all requests.
            hidden: [tokens, H], for networks that read hidden states.
        """
        private = iter(self.kernel.private_blocks)
        parts, begin = cut(batch, self.most_rows), 0
        self._runs, self._places = [], {}
        for part in parts:
            items = [item for _, item in part]
            end = begin + sum(len(item.tokens) for item in items)
            run = self._run(items, None if hidden is None else hidden[begin:end], private)
            if len(parts) > 1:
                run.keep()
            self._runs.append(run)
            # Of chains, which may be cut, nothing is moved.
            self._places |= {index: (run, place) for place, (index, _) in enumerate(part)}
            begin = end

    @property
    def attention(self) -> Mapping[str, str]:
        """See `engine.backend.PagedNetwork`."""
        return self.kernel.description

    def output(self, name: str) -> NDArray[Any]:
        """An output of the last step; valid until the next."""
        if len(self._runs) == 1:
            return self._runs[0].output(name)
        return np.concatenate([run.output(name) for run in self._runs])

    def best(self, name: str) -> BestLogits:
        """The greatest of each row of an output of the last step."""
        return BestLogits.of(self.output(name))

    def keeps_bits(self, rows: int) -> bool:
        """See `engine.backend.PagedNetwork`; what it computes to find out, the cache must not hold already."""
        if rows <= self.most_rows:
            return True
        few, many = (self._first_row(count) for count in (_FEWEST_ROWS, min(rows + 1, self._room)))
        return np.array_equal(few, many, equal_nan=True)

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """See `engine.runner.Runner.block_weights`."""
        run, place = self._places[index]
        return run.step.block_weights(place)

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""
        run, place = self._places[index]
        run.step.commit(place, kept)

    def _run(
        self, batch: Sequence[SequenceInput], hidden: NDArray[np.float32] | None, private: Iterator[int]
    ) -> "_Run":
        rows = sum(len(item.tokens) for item in batch)
        wanted = sum(len(item.tokens) - item.logits_from for item in batch)
        # Padding has logits, too: so they are of none or of several.
        rows = max(_FEWEST_ROWS, rows + (wanted == 1))
        bucket = bucket_of(rows, self._of_size)
        step = self.kernel.step(batch, bucket or rows, private)
        if hidden is not None:
            step.inputs["hidden"] = np.concatenate(
                [hidden, np.zeros((step.padding, hidden.shape[1]), np.float32)]
            )
        compiled = self._of_size[bucket] if bucket else self._for_any
        compiled.infer(step.inputs)
        step.ran()
        return _Run(step, compiled)

    def _warm_up(self, longest: int) -> None:
        """Run everything once; the first run of a graph takes ten times as long as the next."""
        largest = max(self._of_size, default=_FEWEST_ROWS - 1)
        for rows in (*self._of_size, largest + 1):  # the last one in the graph for any number
            self._of_nothing(self.kernel.warm_up(rows, longest))

    def _first_row(self, rows: int) -> NDArray[np.float32]:
        """Of the first output, of a step of equal rows."""
        run = self._of_nothing(self.kernel.equal_rows(rows))
        row: NDArray[np.float32] = run.output(self._for_any.outputs[0])[0].copy()
        return row

    def _of_nothing(self, batch: Sequence[SequenceInput]) -> "_Run":
        rows = sum(len(item.tokens) for item in batch)
        return self._run(batch, self._for_any.some_hidden(rows), iter(self.kernel.private_blocks))


class _Run:
    """A run of a compiled model, and what came out, valid until its next one unless it is kept."""

    def __init__(self, step: KernelStep, compiled: "_Compiled") -> None:
        self.step = step
        self._compiled = compiled
        self._kept: dict[str, NDArray[Any]] = {}

    def keep(self) -> None:
        """Copy what came out."""
        self._kept = {name: self.output(name).copy() for name in self._compiled.outputs}

    def output(self, name: str) -> NDArray[Any]:
        """Without padding."""
        if name in self._kept:
            return self._kept[name]
        values = self._compiled.output(name)
        return values[: len(values) - self.step.padding]


class _Compiled:
    """A compiled model with its one request.

    Attributes:
        outputs: names.
        threads: on which it runs.
    """

    def __init__(self, model: ov.Model, how: Settings) -> None:
        compiled = _COMPILER.compile_model(model, "CPU", how)
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

    def some_hidden(self, tokens: int) -> NDArray[np.float32] | None:
        """Equal rows for the input `hidden`, where there is one."""
        if "hidden" not in self._ports:
            return None
        width = self._ports["hidden"].partial_shape[1].get_length()
        return np.tile(np.sin(np.arange(width, dtype=np.float32)), (tokens, 1))

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


def _file_bytes(path: Path) -> int:
    """Of a graph and the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _read(core: ov.Core, path: Path) -> ov.Model:
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise EngineError(f"{path} is damaged ({error}); run `drafthouse build` again") from error


def _paged(
    path: Path, outputs: Sequence[str], attention: ConversionExtension, layers: LinearLayers
) -> ov.Model:
    core = ov.Core()
    for extension in (attention, layers.extension()):
        core.add_extension(extension)
    model = _with_free_caches(_with_outputs(_read(core, path), outputs))
    layers.take_over(model)
    return model


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
    """A copy for steps of `tokens` tokens."""
    fixed = model.clone()
    shapes = {port: port.get_partial_shape() for port in fixed.inputs if port.any_name in _PER_TOKEN}
    for shape in shapes.values():
        shape[0] = tokens
    fixed.reshape(shapes)
    return fixed
