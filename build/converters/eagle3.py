"""EAGLE-3 drafters for the LLM API of TensorRT-LLM 1.2.1 (`_torch/models/modeling_speculative.py`).

What its loader needs and other trainers leave out: tensors named `midlayer.*`, `draft_vocab_size` in the config (by
which it recognises a drafter), and `architectures: [LlamaForCausalLM]`. It takes token embeddings from the target, so
a drafter that stores its own must have the target's. `d2t` holds offsets. `norm_output`, by which the normed output is
fed back, is `return_hidden_post_norm` in `eagle_config` there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from build.converters.choices import weight_dtype
from build.converters.errors import ConversionError
from build.converters.output import Conversion, new_directory
from build.converters.target import HuggingFaceTarget, read_target
from speculators.eagle.checkpoint import EMBEDDING
from speculators.eagle3.checkpoint import Eagle3Checkpoint, load_checkpoint, save_checkpoint
from speculators.eagle3.config import Eagle3Config
from speculators.formats.tensors import as_dtype, dtype_of

# Two roundings to bfloat16 of one embedding differ by less.
_RELATIVE_ROUNDING = 2.0**-7


def convert_eagle3(drafter: Path, target: Path, output: Path, *, dtype: str | None = None) -> Conversion:
    """Write a drafter as the LLM API's `speculative_model_dir` reads it.

    Args:
        drafter: in the layout of the EAGLE repository, SpecForge or the speculators library.
        target: the model in Hugging Face layout.
        output: directory to write.
        dtype: of the drafter; unset means that in which it is stored.

    Raises:
        ConversionError: the drafter does not fit the target, needs what 1.2.1 does not compute, or the output cannot
            be written.
        CheckpointError: a checkpoint is missing or damaged.
    """
    found = load_checkpoint(drafter)
    about = read_target(target)
    if not isinstance(about, HuggingFaceTarget):
        raise ConversionError(
            f"{target} is a TensorRT-LLM checkpoint; EAGLE-3 runs on the LLM API, which reads the target in Hugging "
            "Face layout: give that directory"
        )
    _check(found.config, drafter, about)
    _check_embedding(found, drafter, about)
    kept = {name: values for name, values in found.tensors.items() if name != EMBEDDING}
    converted = Eagle3Checkpoint(_flat(found.config), as_dtype(kept, weight_dtype(dtype) or dtype_of(kept)))
    size = sum(values.nbytes for values in kept.values())
    with new_directory(output, [drafter, target], size, {"family": "eagle3", "layout": "source"}) as partial:
        save_checkpoint(converted, partial)
    return Conversion(output, "source", _notes(found.config))


def _check(config: Eagle3Config, drafter: Path, target: HuggingFaceTarget) -> None:
    if config.feature_width != target.hidden_size:
        raise ConversionError(
            f"{drafter} reads hidden states of width {config.feature_width}; {target.directory} has hidden_size "
            f"{target.hidden_size}: it is another target"
        )
    if config.hidden_size != config.feature_width:
        raise ConversionError(
            f"{drafter} has hidden_size {config.hidden_size} for a target of {config.feature_width}; it shares the "
            "target's token embedding, so both must be the same"
        )
    if config.vocab_size != target.vocab_size:
        raise ConversionError(
            f"{drafter} has a vocabulary of {config.vocab_size}; {target.directory} has vocab_size "
            f"{target.vocab_size}; the drafter must be trained with the target's, added tokens included"
        )
    for name, used in (
        ("norm_before_residual", config.norm_before_residual),
        ("norm_before_fc", config.norm_before_fc),
        ("fc_norm", config.fc_norm),
        ("norms of queries and keys", config.qk_norm),
    ):
        if used:
            raise ConversionError(
                f"{drafter} was trained with {name}, which TensorRT-LLM 1.2.1 does not compute; train it without "
                "(`drafthouse train` does)"
            )


def _check_embedding(found: Eagle3Checkpoint, drafter: Path, target: HuggingFaceTarget) -> None:
    if EMBEDDING not in found.tensors:
        return
    own, theirs = (values.astype(np.float32) for values in (found.tensors[EMBEDDING], target.embedding()))
    if not np.allclose(own, theirs, rtol=_RELATIVE_ROUNDING, atol=1e-6):
        raise ConversionError(
            f"{drafter} has token embeddings of its own, but TensorRT-LLM 1.2.1 uses those of the target; it was "
            "trained for another target, or its embeddings were not frozen"
        )


def _flat(config: Eagle3Config) -> Eagle3Config:
    if config.target_layers is not None:
        config = config.reading(config.target_layers)
    if config.norm_output:
        config = config.changed(eagle_config={**(config.eagle_config or {}), "return_hidden_post_norm": True})
    return config.changed(architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=False)


def _notes(config: Eagle3Config) -> tuple[str, ...]:
    layers = config.target_layers
    if layers is None:
        return ()
    return (f"speculative_config needs eagle3_layers_to_capture: {layers}",)
