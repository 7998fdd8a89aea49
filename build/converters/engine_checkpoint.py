"""A TensorRT-LLM checkpoint: `config.json` and one `rank{r}.safetensors` for each GPU, input of `trtllm-build`.

Rank r is pipeline stage ``r // tp_size``, tensor-parallel rank ``r % tp_size`` (TensorRT-LLM 1.2.1 `mapping.py`).
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.converters.errors import ConversionError
from build.converters.output import directory_bytes, new_directory
from build.converters.safetensors_append import append_tensors, damaged
from build.converters.sharding import join, padded_vocabulary
from deployments.files.reading import read_json_object
from deployments.files.safetensors import read_whole_header
from speculators.formats.config import CONFIG_FILE
from speculators.formats.tensors import FLOAT_TYPES, Array, Tensors, is_float, read_tensors

OUTPUT_MATRIX = "lm_head.weight"
EMBEDDING = "transformer.vocab_embedding.weight"

# What TensorRT-LLM 1.2.1 leaves unquantised where the config names nothing (`quantization/quantize.py`).
_DEFAULT_EXCLUDED = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)


@dataclass(frozen=True)
class EngineCheckpoint:
    """A checkpoint directory whose config was read and whose rank files are there and whole."""

    directory: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> EngineCheckpoint:
        """Open a checkpoint.

        Raises:
            ConversionError: it is no TensorRT-LLM checkpoint, or one of its files is missing, unreadable or truncated.
        """
        checkpoint = cls(directory, read_json_object(directory / CONFIG_FILE, ConversionError))
        if not is_engine_config(checkpoint.config):
            raise ConversionError(
                f"{directory} is no TensorRT-LLM checkpoint (config.json has no `architecture`); make one with "
                "convert_checkpoint.py of the target's family, or convert to the layout `source`"
            )
        for rank in range(checkpoint.world_size):
            read_whole_header(checkpoint.rank_file(rank), damaged)
        return checkpoint

    @property
    def architecture(self) -> str:
        """TensorRT-LLM's name of the model class."""
        return str(self.config["architecture"])

    @property
    def hidden_size(self) -> int:
        """Width of the target, H."""
        return self.integer("hidden_size")

    @property
    def vocab_size(self) -> int:
        """Tokens of the target, V, without padding."""
        return self.integer("vocab_size")

    @property
    def dtype(self) -> str:
        """The one type of unquantised weights.

        Raises:
            ConversionError: it is none that weights can have.
        """
        dtype = str(self.config.get("dtype"))
        if dtype not in FLOAT_TYPES:
            raise ConversionError(
                f"{self.directory / CONFIG_FILE}: dtype is {dtype!r}; it must be one of {', '.join(FLOAT_TYPES)}"
            )
        return dtype

    @property
    def tp_size(self) -> int:
        """Tensor-parallel ranks."""
        return self._parallel("tp_size")

    @property
    def pp_size(self) -> int:
        """Pipeline stages."""
        return self._parallel("pp_size")

    @property
    def world_size(self) -> int:
        """Rank files."""
        return self.tp_size * self.pp_size

    def integer(self, key: str) -> int:
        """A positive whole number of the config.

        Raises:
            ConversionError: it is missing or something else.
        """
        return positive_integer(self.config, key, self.directory / CONFIG_FILE)

    def rank_file(self, rank: int) -> Path:
        """Weights of one rank."""
        return self.directory / f"rank{rank}.safetensors"

    def tensors(self, prefix: str, stage: int = 0) -> list[Tensors]:
        """Tensors under a prefix, which is cut off, of each tensor-parallel rank of a pipeline stage."""
        ranks = range(stage * self.tp_size, (stage + 1) * self.tp_size)
        found = [read_tensors(self.rank_file(rank), lambda name: name.startswith(prefix)) for rank in ranks]
        return [{name.removeprefix(prefix): part for name, part in rank.items()} for rank in found]

    def whole(self, prefix: str, names: Mapping[str, str]) -> Tensors:
        """Tensors that `split_all` shared out, under the names that they had before.

        Raises:
            ConversionError: one is missing.
        """
        parts = self.tensors(prefix)
        missing = [renamed for renamed in names.values() for part in parts if renamed not in part]
        if missing:
            raise ConversionError(f"{self.directory}: {prefix}{missing[0]} is missing")
        return {name: join([part[renamed] for part in parts]) for name, renamed in names.items()}

    def output_shards(self) -> list[Array]:
        """The output matrix as it lies on the last stage, ``[padded V / tp, H]`` each.

        Raises:
            ConversionError: it is missing, quantised, or of another shape.
        """
        rows = padded_vocabulary(self.vocab_size, self.tp_size) // self.tp_size
        return [
            self._weight(rank, OUTPUT_MATRIX, (rows, self.hidden_size))
            for rank in range(self.world_size - self.tp_size, self.world_size)
        ]

    def output_matrix(self) -> Array:
        """The output matrix, ``[V, H]``."""
        return join(self.output_shards())[: self.vocab_size]

    def embedding(self) -> Array:
        """The token embedding, ``[V, H]``.

        Raises:
            ConversionError: it is missing, quantised, or split over ranks.
        """
        return self._weight(0, EMBEDDING, (self.vocab_size, self.hidden_size))

    def add_drafter(
        self,
        drafter: Path,
        output: Path,
        settings: Mapping[str, Any],
        parts: Sequence[Mapping[str, Array]],
        *,
        prefix: str,
        provenance: dict[str, Any],
    ) -> None:
        """Write this checkpoint with a drafter added.

        Args:
            drafter: what it was read from.
            output: directory to write; see `new_directory`.
            settings: keys of `config.json` that are added or changed.
            parts: the drafter's tensors on each tensor-parallel rank; every pipeline stage gets them.
            prefix: of the names of the drafter's modules, which stay unquantised.
            provenance: see `new_directory`.

        Raises:
            ConversionError: a rank file is damaged or has a drafter already, or `output` cannot be written.
        """
        size = directory_bytes(self.directory) + sum(
            values.nbytes for part in parts for values in part.values()
        )
        with new_directory(output, [drafter, self.directory], size, provenance) as partial:
            self._write(partial, settings, parts, prefix)

    def _write(
        self, output: Path, settings: Mapping[str, Any], parts: Sequence[Mapping[str, Array]], prefix: str
    ) -> None:
        for rank in range(self.world_size):
            name = self.rank_file(rank).name
            append_tensors(self.rank_file(rank), output / name, parts[rank % self.tp_size])
        for path in self.directory.glob("quant*.json"):  # which layer is quantised how, for mixed precision
            shutil.copyfile(path, output / path.name)
        config = {**copy.deepcopy(self.config), **settings, "quantization": self._quantization(prefix + "*")}
        (output / CONFIG_FILE).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")

    def _quantization(self, modules: str) -> dict[str, Any]:
        quantization = dict(self.config.get("quantization") or {})
        if quantization.get("quant_algo"):
            excluded = quantization.get("exclude_modules") or _DEFAULT_EXCLUDED
            quantization["exclude_modules"] = [*excluded, modules]
        return quantization

    def _weight(self, rank: int, name: str, shape: tuple[int, ...]) -> Array:
        path = self.rank_file(rank)
        values = read_tensors(path, lambda found: found == name).get(name)
        if values is None:
            raise ConversionError(f"{path} has no {name}, which the drafter needs")
        if values.shape != shape:
            raise ConversionError(
                f"{path}: {name} has shape {list(values.shape)} where {list(shape)} was expected; convert the "
                "target without --use_parallel_embedding, and with the tensor parallelism of its config.json"
            )
        if not is_float(values):
            raise ConversionError(
                f"{path}: {name} is quantised to {values.dtype}; leave it out of quantisation"
            )
        return values

    def _parallel(self, key: str) -> int:
        mapping = self.config.get("mapping") or {}
        size = mapping.get(key, 1)
        if not isinstance(size, int) or size < 1:
            raise ConversionError(
                f"{self.directory / CONFIG_FILE}: mapping.{key} is {size!r}; it must be at least 1"
            )
        return size


def is_engine_config(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is TensorRT-LLM's; Hugging Face has a list `architectures` instead."""
    return isinstance(config.get("architecture"), str)


def positive_integer(config: Mapping[str, Any], key: str, where: Path) -> int:
    """A positive whole number of a config.

    Raises:
        ConversionError: it is missing or something else.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConversionError(f"{where}: {key} is {value!r}; it must be a positive whole number")
    return value
