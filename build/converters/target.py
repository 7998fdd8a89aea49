"""The target that a drafter is converted for: a TensorRT-LLM checkpoint, or a model in Hugging Face layout.

Both know width and vocabulary, and give output matrix and token embedding to drafters that share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.converters.engine_checkpoint import EngineCheckpoint, is_engine_config, positive_integer
from build.converters.errors import ConversionError
from deployments.files.reading import read_json_object
from speculators.formats.config import CONFIG_FILE
from speculators.formats.tensors import Array, find_file, is_float, read_tensors

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class HuggingFaceTarget:
    """A target in Hugging Face layout; weights are read only when they are asked for."""

    directory: Path
    config: dict[str, Any]

    @property
    def hidden_size(self) -> int:
        """Width of the target, H."""
        return positive_integer(self.config, "hidden_size", self.directory / CONFIG_FILE)

    @property
    def vocab_size(self) -> int:
        """Tokens of the target, V: rows of its embedding, added tokens included."""
        return positive_integer(self.config, "vocab_size", self.directory / CONFIG_FILE)

    def embedding(self) -> Array:
        """The token embedding, ``[V, H]``.

        Raises:
            CheckpointError: there are no weights, or a file is damaged.
            ConversionError: the tensor is missing, quantised, or of another shape.
        """
        return self._weight(_EMBEDDING)

    def output_matrix(self) -> Array:
        """The output matrix, ``[V, H]``; the embedding where the target ties them."""
        return self._weight(_EMBEDDING if self.config.get("tie_word_embeddings") else _OUTPUT)

    def _weight(self, name: str) -> Array:
        path = find_file(self.directory, _WEIGHT_FILES)
        values = read_tensors(path, lambda found: found == name).get(name)
        if values is None:
            raise ConversionError(f"{path} has no {name}, which the drafter needs")
        if not is_float(values) or values.shape != (self.vocab_size, self.hidden_size):
            raise ConversionError(
                f"{path}: {name} is {values.dtype} {list(values.shape)}; config.json says weights of shape "
                f"{[self.vocab_size, self.hidden_size]}"
            )
        return values


Target = HuggingFaceTarget | EngineCheckpoint


def read_target(directory: Path) -> Target:
    """Open a target, whichever of the two it is.

    Raises:
        ConversionError: `config.json` or a rank file is missing, unreadable or truncated.
    """
    config = read_json_object(directory / CONFIG_FILE, ConversionError)
    return (
        EngineCheckpoint.read(directory) if is_engine_config(config) else HuggingFaceTarget(directory, config)
    )


def check_fit(drafter: Path, width: int, vocabulary: int | None, target: Target) -> None:
    """A drafter must have the width and the vocabulary of its target.

    Args:
        drafter: what errors call it.
        width: of the hidden states that it reads.
        vocabulary: of its output or embedding; None where it has neither.
        target: for whom it is converted.

    Raises:
        ConversionError: they differ.
    """
    if width != target.hidden_size:
        raise ConversionError(
            f"{drafter} was trained for a target of width {width}; {target.directory} has hidden_size "
            f"{target.hidden_size}: it is another target"
        )
    if vocabulary is not None and vocabulary != target.vocab_size:
        raise ConversionError(
            f"{drafter} has a vocabulary of {vocabulary}; {target.directory} has vocab_size {target.vocab_size}"
            f"{_vocabulary_hint(vocabulary, target)}"
        )


def _vocabulary_hint(vocabulary: int, target: Target) -> str:
    """The usual reason: a tokenizer counted without its added tokens (128000 for Llama 3's 128256)."""
    without_added = _tokenizer_size(target.directory / "tokenizer.json")
    if vocabulary == without_added:
        return (
            f": {vocabulary} is what the tokenizer has without its added tokens, which special tokens are; "
            "train the drafter with the vocab_size of the target's config.json"
        )
    return (
        ": it is another target, or its tokenizer was counted without added tokens"
        if vocabulary < target.vocab_size
        else ""
    )


def _tokenizer_size(path: Path) -> int | None:
    try:
        vocabulary = read_json_object(path, ConversionError)["model"]["vocab"]
    except (ConversionError, KeyError, TypeError):
        return None  # it only words a hint
    return len(vocabulary)
