"""Medusa heads for TensorRT-LLM 1.2.1 (`models/medusa/{model,weight,config}.py`, `examples/medusa`), and back.

Tensors that are added to every rank of a target's checkpoint, for heads h, blocks l, width H, tp ranks:

    medusa_heads.{h}.medusa_layers.{l}.linear.weight   [H / tp, H]
    medusa_heads.{h}.medusa_layers.{l}.linear.bias     [H / tp]
    medusa_heads.{h}.lm_head.weight                    [padded V / tp, H]

Keys of its config: `architecture` MedusaForCausalLM, `num_medusa_heads`, `num_medusa_layers`, `max_draft_len` (nodes of
the token tree without its root), `model_type` (and `qwen_type`). Heads without output matrices get the target's, which
is what they were trained with. NVIDIA's own script neither pads the vocabulary nor knows such heads, and takes four
heads unless `--num_medusa_heads` says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from build.converters.choices import Layout, engine_target, weight_dtype
from build.converters.engine_checkpoint import EngineCheckpoint
from build.converters.errors import ConversionError
from build.converters.output import Conversion, new_directory
from build.converters.sharding import pad_rows, padded_vocabulary, split_all
from build.converters.target import Target, check_fit, read_target
from speculators.formats.tensors import Tensors, as_dtype, dtype_of
from speculators.medusa.checkpoint import (
    MedusaCheckpoint,
    first_heads,
    hidden_size,
    load_checkpoint,
    output_name,
    save_checkpoint,
    vocab_size,
)
from speculators.medusa.config import MedusaConfig

ARCHITECTURE = "MedusaForCausalLM"
PREFIX = "medusa_heads."
MAX_DRAFT_LENGTH = 63

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "QWenForCausalLM": "qwen2",
}
"""Model type that MedusaForCausalLM builds for each architecture of a target's checkpoint."""


def convert_medusa(
    drafter: Path,
    target: Path,
    output: Path,
    *,
    layout: Layout = "checkpoint",
    dtype: str | None = None,
    tp_size: int | None = None,
    num_heads: int | None = None,
    max_draft_length: int = MAX_DRAFT_LENGTH,
) -> Conversion:
    """Add heads to a target's checkpoint, or write them as NVIDIA's script reads them.

    Args:
        drafter: heads in a layout of the Medusa repository.
        target: a TensorRT-LLM checkpoint for the layout `checkpoint`; this or a Hugging Face model for `source`.
        output: directory to write.
        layout: `checkpoint` or `source`.
        dtype: of the heads; unset means that of the checkpoint, or that in which they are stored.
        tp_size: must be that of the checkpoint; unset means whatever it is.
        num_heads: number of heads to keep, the first ones; unset means all.
        max_draft_length: most nodes of a token tree that the engine is built for.

    Raises:
        ConversionError: the heads do not fit the target, or the output cannot be written.
        CheckpointError: a checkpoint is missing or damaged.
    """
    heads = load_checkpoint(drafter)
    if num_heads is not None:
        heads = first_heads(heads, num_heads)
    about = read_target(target)
    check_fit(drafter, hidden_size(heads), vocab_size(heads), about)
    if layout == "source":
        return _write_source(heads, drafter, about, output, dtype)
    engine = engine_target(about, dtype, tp_size)
    if max_draft_length < heads.config.medusa_num_heads:
        raise ConversionError(
            f"max_draft_length = {max_draft_length} is below the number of heads, {heads.config.medusa_num_heads}"
        )
    tensors = as_dtype(_with_outputs(heads, engine).tensors, engine.dtype)
    parts = _sharded(heads.config, tensors, engine)
    settings = _settings(heads.config, engine, max_draft_length)
    made = {"family": "medusa", "layout": layout, "heads": heads.config.medusa_num_heads}
    engine.add_drafter(drafter, output, settings, parts, prefix=PREFIX, provenance=made)
    return Conversion(output, layout, ("trtllm-build needs --speculative_decoding_mode medusa",))


def restore_medusa(checkpoint: Path, output: Path) -> Conversion:
    """Write the heads of a MedusaForCausalLM checkpoint in the layout of the Medusa repository, padding removed.

    Raises:
        ConversionError: the checkpoint has no Medusa heads, or the output cannot be written.
        CheckpointError: a file is missing or damaged.
    """
    engine = EngineCheckpoint.read(checkpoint)
    if engine.architecture != ARCHITECTURE:
        raise ConversionError(f"{checkpoint} is a {engine.architecture} checkpoint, not {ARCHITECTURE}")
    config = MedusaConfig(
        medusa_num_heads=engine.integer("num_medusa_heads"),
        medusa_num_layers=engine.integer("num_medusa_layers"),
    )
    heads = MedusaCheckpoint(config, _whole(config, engine))
    size = sum(values.nbytes for values in heads.tensors.values())
    with new_directory(output, [checkpoint], size, {"family": "medusa", "layout": "source"}) as partial:
        save_checkpoint(heads, partial)
    return Conversion(output, "source")


def _write_source(
    heads: MedusaCheckpoint, drafter: Path, target: Target, output: Path, dtype: str | None
) -> Conversion:
    whole = _with_outputs(heads, target)
    kept = dtype_of(heads.tensors)
    whole = MedusaCheckpoint(whole.config, as_dtype(whole.tensors, weight_dtype(dtype) or kept))
    size = sum(values.nbytes for values in whole.tensors.values())
    made = {"family": "medusa", "layout": "source", "heads": whole.config.medusa_num_heads}
    with new_directory(output, [drafter, target.directory], size, made) as partial:
        save_checkpoint(whole, partial)
    count = whole.config.medusa_num_heads
    return Conversion(output, "source", (f"convert_checkpoint.py needs --num_medusa_heads {count}",))


def _with_outputs(heads: MedusaCheckpoint, target: Target) -> MedusaCheckpoint:
    """Heads with output matrices: their own, or the target's, which is all that such heads ever used."""
    if vocab_size(heads) is not None:
        return heads
    shared = target.output_matrix()
    return MedusaCheckpoint(heads.config, {**heads.tensors, **dict.fromkeys(_outputs(heads.config), shared)})


def _engine_names(config: MedusaConfig) -> dict[str, str]:
    """Name of each tensor in the Medusa repository -> its name behind `medusa_heads.`."""
    names: dict[str, str] = {}
    for head in range(config.medusa_num_heads):
        for block in range(config.medusa_num_layers):
            for kind in ("weight", "bias"):
                names[f"{head}.{block}.linear.{kind}"] = f"{head}.medusa_layers.{block}.linear.{kind}"
        names[output_name(config, head)] = f"{head}.lm_head.weight"
    return names


def _sharded(config: MedusaConfig, tensors: Tensors, engine: EngineCheckpoint) -> list[Tensors]:
    rows = padded_vocabulary(engine.vocab_size, engine.tp_size)
    padded = {name: pad_rows(tensors[name], rows) for name in _outputs(config)}
    return split_all({**tensors, **padded}, _engine_names(config), PREFIX, engine.tp_size)


def _whole(config: MedusaConfig, engine: EngineCheckpoint) -> Tensors:
    tensors = engine.whole(PREFIX, _engine_names(config))
    return {**tensors, **{name: tensors[name][: engine.vocab_size] for name in _outputs(config)}}


def _outputs(config: MedusaConfig) -> list[str]:
    return [output_name(config, head) for head in range(config.medusa_num_heads)]


def _settings(config: MedusaConfig, engine: EngineCheckpoint, max_draft_length: int) -> dict[str, object]:
    model_type = MODEL_TYPES.get(engine.architecture)
    if model_type is None:
        raise ConversionError(
            f"{engine.directory} is a {engine.architecture} checkpoint; TensorRT-LLM 1.2.1 puts Medusa on "
            f"{', '.join(MODEL_TYPES)}"
        )
    settings: dict[str, object] = {
        "architecture": ARCHITECTURE,
        "model_type": model_type,
        "num_medusa_heads": config.medusa_num_heads,
        "num_medusa_layers": config.medusa_num_layers,
        "max_draft_len": max_draft_length,
    }
    if model_type == "qwen2":
        if engine.config.get("qwen_type", model_type) != model_type:
            raise ConversionError(
                f"{engine.directory} has qwen_type {engine.config['qwen_type']!r}; Medusa needs {model_type!r}"
            )
        settings["qwen_type"] = model_type
    return settings
