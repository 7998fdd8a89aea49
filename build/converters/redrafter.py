"""ReDrafter heads for TensorRT-LLM 1.2.1 (`models/redrafter/drafter.py`, `examples/redrafter`), and back.

Tensors that are added to every rank of a target's checkpoint, each split on its first axis over tp ranks:

    drafter.input_proj.{weight,bias}        [X / tp, 2H], [X / tp]   where X differs from 2H
    drafter.layers.{i}.linear.{weight,bias} [X / tp, X], [X / tp]
    drafter.lm_head.weight                  [V / tp, X]
    drafter.rnn_u.{weight,bias}             [H / tp, H], [H / tp]    where the drafter is recurrent
    drafter.rnn_w.weight                    [H / tp, H]

Keys of its config: `base_model_architecture`, `architecture`, `redrafter_num_layers`, `redrafter_hidden_size`,
`redrafter_exit_dim`, `redrafter_is_rnn`, `redrafter_num_beams`, `redrafter_draft_len_per_beam`,
`redrafter_greedy_search`.
The engine reshapes draft logits to ``[beams * vocab_size]`` (`redrafter_helper.py`), so a padded vocabulary cannot be:
V must be divisible by the tensor-parallel size.
"""

from __future__ import annotations

from pathlib import Path

from build.converters.choices import Layout, engine_target, weight_dtype
from build.converters.engine_checkpoint import EngineCheckpoint
from build.converters.errors import ConversionError
from build.converters.output import Conversion, new_directory
from build.converters.sharding import split_all
from build.converters.target import check_fit, read_target
from speculators.formats.tensors import as_dtype, dtype_of
from speculators.redrafter.checkpoint import (
    RedrafterCheckpoint,
    load_checkpoint,
    output_name,
    save_checkpoint,
    tensor_shapes,
)
from speculators.redrafter.config import RedrafterConfig

ARCHITECTURES = {
    "LlamaForCausalLM": "ReDrafterForLLaMALM",
    "Qwen2ForCausalLM": "ReDrafterForQWenLM",
    "QWenForCausalLM": "ReDrafterForQWenLM",
}
"""TensorRT-LLM's class for each architecture of a target's checkpoint."""

PREFIX = "drafter."
NUM_BEAMS, DRAFT_LENGTH = 5, 5


def convert_redrafter(
    drafter: Path,
    target: Path,
    output: Path,
    *,
    layout: Layout = "checkpoint",
    dtype: str | None = None,
    tp_size: int | None = None,
    num_beams: int = NUM_BEAMS,
    draft_length: int = DRAFT_LENGTH,
    greedy_search: bool = True,
) -> Conversion:
    """Add a head to a target's checkpoint, or write it as NVIDIA's script reads it.

    Args:
        drafter: a head in the layout of ml-recurrent-drafter.
        target: a TensorRT-LLM checkpoint for the layout `checkpoint`; this or a Hugging Face model for `source`.
        output: directory to write.
        layout: `checkpoint` or `source`.
        dtype: of the head; unset means that of the checkpoint, or that in which it is stored.
        tp_size: must be that of the checkpoint; unset means whatever it is.
        num_beams: beams of the search that drafts.
        draft_length: drafted tokens in each beam, at most those that the head was trained for.
        greedy_search: the target emits its likeliest token; otherwise it samples.

    Raises:
        ConversionError: the head does not fit the target, or the output cannot be written.
        CheckpointError: a checkpoint is missing or damaged.
    """
    head = load_checkpoint(drafter)
    about = read_target(target)
    check_fit(drafter, head.config.hidden_size, head.config.vocab_size, about)
    if layout == "source":
        tensors = as_dtype(head.tensors, weight_dtype(dtype) or dtype_of(head.tensors))
        return _write_source(RedrafterCheckpoint(head.config, tensors), [drafter, target], output)
    engine = engine_target(about, dtype, tp_size)
    settings = _settings(head.config, engine, num_beams, draft_length, greedy_search)
    tensors = as_dtype(head.tensors, engine.dtype)
    parts = split_all(tensors, _engine_names(head.config), PREFIX, engine.tp_size)
    made = {"family": "redrafter", "layout": layout}
    engine.add_drafter(drafter, output, settings, parts, prefix=PREFIX, provenance=made)
    return Conversion(
        output, layout, ("trtllm-build needs --speculative_decoding_mode explicit_draft_tokens",)
    )


def restore_redrafter(checkpoint: Path, output: Path) -> Conversion:
    """Write the head of a ReDrafter checkpoint in the layout of ml-recurrent-drafter.

    Raises:
        ConversionError: the checkpoint has no ReDrafter head, or the output cannot be written.
        CheckpointError: a file is missing or damaged.
    """
    engine = EngineCheckpoint.read(checkpoint)
    if engine.architecture not in ARCHITECTURES.values():
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise ConversionError(f"{checkpoint} is a {engine.architecture} checkpoint, none of {known}")
    config = RedrafterConfig(
        vocab_size=engine.vocab_size,
        hidden_size=engine.integer("redrafter_hidden_size"),
        exit_dim=engine.integer("redrafter_exit_dim"),
        num_draft_layers=engine.integer("redrafter_num_layers"),
        rnn=bool(engine.config.get("redrafter_is_rnn")),
    )
    tensors = engine.whole(PREFIX, _engine_names(config))
    return _write_source(RedrafterCheckpoint(config, tensors), [checkpoint], output)


def _write_source(head: RedrafterCheckpoint, sources: list[Path], output: Path) -> Conversion:
    size = sum(values.nbytes for values in head.tensors.values())
    with new_directory(output, sources, size, {"family": "redrafter", "layout": "source"}) as partial:
        save_checkpoint(head, partial)
    return Conversion(output, "source")


def _engine_names(config: RedrafterConfig) -> dict[str, str]:
    """Name of each tensor in ml-recurrent-drafter -> its name behind `drafter.`."""
    names = {name: name.replace("lm_head.", "layers.") for name in tensor_shapes(config)}
    return {**names, output_name(config): "lm_head.weight"}


def _settings(
    config: RedrafterConfig, engine: EngineCheckpoint, num_beams: int, draft_length: int, greedy_search: bool
) -> dict[str, object]:
    architecture = ARCHITECTURES.get(engine.architecture)
    if architecture is None:
        raise ConversionError(
            f"{engine.directory} is a {engine.architecture} checkpoint; TensorRT-LLM 1.2.1 puts ReDrafter on "
            f"{', '.join(ARCHITECTURES)}"
        )
    if engine.pp_size > 1:
        raise ConversionError(
            f"{engine.directory} has {engine.pp_size} pipeline stages; ReDrafter runs on one"
        )
    if num_beams < 1 or draft_length < 1:
        raise ConversionError(
            f"num_beams = {num_beams} and draft_length = {draft_length} must both be at least 1"
        )
    return {
        "base_model_architecture": engine.architecture,
        "architecture": architecture,
        "redrafter_num_layers": config.num_draft_layers,
        "redrafter_hidden_size": config.hidden_size,
        "redrafter_exit_dim": config.exit_dim,
        "redrafter_is_rnn": config.rnn,
        "redrafter_num_beams": num_beams,
        "redrafter_draft_len_per_beam": draft_length,
        "redrafter_greedy_search": greedy_search,
    }
