"""The compiled target on OpenVINO.

Settings, with their reasons:

* `INFERENCE_PRECISION_HINT=f32`: activations stay fp32, so a token's result does not depend on the machine.
* `DYNAMIC_QUANTIZATION_GROUP_SIZE`: int8 engines quantise activations in groups within a row, so a token's
  result does not depend on its neighbours in the batch, and eight tokens cost little more than one.
* `KV_CACHE_PRECISION`: int8 engines keep cache rows in fp16 (a batch of eight steps a tenth faster than with
  fp32 rows), fp32 engines in fp32.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engine.manifest import MODEL_NAME, EngineError, EngineManifest, load_manifest
from engine.paged_attention import conversion
from engine.runner import SequenceInput

BLOCK_SIZE = 32  # rows in a cache block; fixed by OpenVINO's CPU kernel
_LARGEST_GROUP = 64  # finer groups keep more of the activations; coarser ones (128, 192) measured no faster


class OpenVinoRunner:
    """A Runner (see `engine.runner`) over `model.onnx`."""

    def __init__(self, directory: Path, *, num_blocks: int, threads: int = 0) -> None:
        """Load the engine in `directory`, with a cache of `num_blocks` blocks, on so many threads (0: all).

        Raises:
            EngineError: the engine is missing, damaged or of another format.
        """
        self.manifest = load_manifest(directory)
        self.vocab_size = self.manifest.vocab_size
        self.block_size = self.manifest.block_size
        self.num_blocks = num_blocks
        self.max_sequence_length = self.manifest.max_sequence_length
        # The kernel counts a sliding window in cache rows; in a tree with branches those are not positions.
        self.takes_branches = self.manifest.sliding_window is None
        core = ov.Core()
        core.add_extension(conversion())
        try:
            model = core.read_model(directory / MODEL_NAME)
        except RuntimeError as error:
            raise EngineError(
                f"{directory / MODEL_NAME} is damaged ({error}); run `drafthouse build` again"
            ) from error
        compiled = core.compile_model(_with_free_caches(model), "CPU", _settings(self.manifest, threads))
        self._request = compiled.create_infer_request()
        self._ports = {port.any_name: port for port in compiled.inputs}
        self._caches = self._allocate_caches()

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        """One step; see `engine.runner.Runner.forward`."""
        layout = _Layout(self.block_size)
        for item in batch:
            layout.add(item)
        inputs = layout.tensors(filler_block=self.num_blocks)
        # `InferRequest.infer` would do the same, half a millisecond slower.
        for name, values in inputs.items():
            self._request.set_tensor(self._ports[name], ov.Tensor(values, shared_memory=True))
        self._request.start_async()
        self._request.wait()
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits

    def commit(self, blocks: Sequence[int], past: int, kept: Sequence[int]) -> None:
        """Keep the accepted path; see `engine.runner.Runner.commit`."""
        moved = [(source, target) for target, source in enumerate(kept) if source != target]
        if not moved:
            return
        table = np.asarray(blocks)
        sources, targets = (past + np.array(rows) for rows in zip(*moved, strict=True))
        size = self.block_size
        for cache in self._caches:
            rows = cache[table[sources // size], :, sources % size]
            cache[table[targets // size], :, targets % size] = rows

    def _allocate_caches(self) -> list[NDArray[np.generic]]:
        caches = []
        for name, port in self._ports.items():
            if "_cache." in name:
                shape = (self.num_blocks + 1, *(port.partial_shape[axis].get_length() for axis in (1, 2, 3)))
                # The last block is the filler's. Zero pages are mapped on first use, so a large cache costs
                # what it holds.
                cache = np.zeros(shape, port.element_type.to_dtype())
                self._request.set_tensor(port, ov.Tensor(cache, shared_memory=True))
                caches.append(cache)
        return caches


def _with_free_caches(model: ov.Model) -> ov.Model:
    """Leave layout and type of the caches to the plugin, which sets them from KV_CACHE_PRECISION."""
    for parameter in model.get_parameters():
        if "_cache." in parameter.get_friendly_name():
            parameter.set_element_type(ov.Type.dynamic)
            parameter.set_partial_shape(ov.PartialShape([-1, -1, -1, -1]))
    model.validate_nodes_and_infer_types()
    return model


def _settings(manifest: EngineManifest, threads: int) -> dict[str, object]:
    quantised = manifest.precision == "int8"
    widths = math.gcd(manifest.hidden_size, manifest.intermediate_size)
    group = max((size for size in range(32, _LARGEST_GROUP + 1, 32) if widths % size == 0), default=32)
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "KV_CACHE_PRECISION": "f16" if quantised else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if quantised else 0,
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
    }


class _Layout:
    """Collects the graph's inputs, shapes as `build.graph.target` declares them.

    OpenVINO has one attention kernel for sequences of a single new token and another for longer ones, and
    they round differently. So every decoded token, drafted ones included, is entered as a sequence of its own
    that shares the cache blocks of its request: the kernel writes all new rows before it reads any, hence a
    drafted token sees the ones before it. Only prompts and trees with branches are entered whole. A third
    kernel serves a batch of one single token; a filler sequence keeps it out.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._rows: list[int] = []
        self._past: list[int] = []
        self._begins = [0]
        self._blocks: list[int] = []
        self._block_begins = [0]
        self._masks: list[NDArray[np.bool_]] = []
        self._mask_begins = [0]
        self._longest = 0

    def add(self, item: SequenceInput) -> None:
        first, length = len(self._tokens), len(item.tokens)
        self._rows.extend(range(first + item.logits_from, first + length))
        self._tokens.extend(item.tokens)
        self._positions.extend(item.past + depth for depth in (item.depths or range(length)))
        if item.is_prompt or item.mask is not None:
            self._add_sequence(item.past, length, item.blocks, item.mask)
        else:
            for offset in range(length):
                self._add_sequence(item.past + offset, 1, item.blocks, None)

    def _add_sequence(
        self, past: int, length: int, blocks: Sequence[int], mask: NDArray[np.bool_] | None
    ) -> None:
        self._past.append(past)
        self._longest = max(self._longest, past + length)
        self._begins.append(self._begins[-1] + length)
        self._blocks.extend(blocks[: -(-(past + length) // self._block_size)])
        self._block_begins.append(len(self._blocks))
        if mask is not None:
            self._masks.append(mask.ravel())
        self._mask_begins.append(self._mask_begins[-1] + (0 if mask is None else mask.size))

    def tensors(self, filler_block: int) -> dict[str, NDArray[np.generic]]:
        if len(self._tokens) == 1:
            self._tokens.append(0)
            self._positions.append(0)
            self._add_sequence(0, 1, [filler_block], None)
        return {
            "input_ids": np.array(self._tokens, np.int64),
            "position_ids": np.array(self._positions, np.int64),
            "past_lens": np.array(self._past, np.int32),
            "subsequence_begins": np.array(self._begins, np.int32),
            "block_indices": np.array(self._blocks, np.int32),
            "block_indices_begins": np.array(self._block_begins, np.int32),
            "max_context_len": np.array(self._longest, np.int32),
            "qq_bias": np.concatenate(self._masks, dtype=np.uint8) if self._masks else np.zeros(0, np.uint8),
            "qq_bias_begins": np.array(self._mask_begins, np.int32),
            "logit_rows": np.array(self._rows, np.int64),
        }
