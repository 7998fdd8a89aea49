"""What a Hugging Face checkpoint says of itself: sizes for the memory estimate, vocabulary, positions.

Only `config.json` and the headers of safetensors files are read, never a weight, so a 70B model takes milliseconds.
Any architecture will do, since nothing is computed with it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from build.targets.errors import TargetError
from deployments.files.reading import read_json_object
from deployments.files.safetensors import METADATA, read_header

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # packed weights stay as they are
_TORCH = (".bin", ".pt", ".pth")
_UNQUANTISED = ("embed_tokens", "lm_head", "wte", "embed_out")


@dataclass(frozen=True)
class StoredWeights:
    """Weights of a checkpoint, counted.

    Attributes:
        parameters: numbers in all tensors of floating point.
        embeddings: those of them in embedding and output matrix, which quantisation leaves alone.
        num_bytes: bytes when loaded in 16 bit, what is stored in less staying as it is.
    """

    parameters: int
    embeddings: int
    num_bytes: int


class HuggingFaceCheckpoint:
    """A directory with `config.json`; everything else is read when asked for."""

    def __init__(self, directory: Path) -> None:
        """Read the config.

        Raises:
            TargetError: there is none, or it or its `text_config` is no JSON object.
        """
        self.directory = directory
        config = read_json_object(directory / "config.json", TargetError)
        # Models that also see or hear keep the language model's numbers in a section of their own.
        section = config.get("text_config") or {}
        if not isinstance(section, dict):
            raise TargetError(f"{directory / 'config.json'}: text_config holds no keys with values")
        self.config: Mapping[str, Any] = {**config, **section}

    def number(self, *names: str) -> int | None:
        """The first of these keys that holds an integer."""
        values = (self.config.get(name) for name in names)
        return next((value for value in values if isinstance(value, int)), None)

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding, padding included."""
        return self.number("vocab_size", "padded_vocab_size")

    @property
    def positions(self) -> int | None:
        """Longest sequence it was made for, scaled rotary embedding included."""
        return self.number("max_position_embeddings", "n_positions", "seq_length")

    @property
    def hidden_size(self) -> int | None:
        """Width of the hidden state."""
        return self.number("hidden_size", "n_embd")

    @property
    def num_layers(self) -> int | None:
        """Decoder layers."""
        return self.number("num_hidden_layers", "n_layer", "num_layers")

    @cached_property
    def weights(self) -> StoredWeights | None:
        """The weights' sizes, from the headers of all safetensors files; None if there are no weights.

        Of PyTorch files the size is taken, for the 16-bit weights that heads are published in.
        """
        parameters = embeddings = num_bytes = 0
        for path in sorted(self.directory.glob("*.safetensors")):
            header, _ = read_header(path, TargetError)
            for name, entry in header.items():
                if name == METADATA:
                    continue
                count, kind = _size_and_type(path, name, entry)
                num_bytes += count * (_INTEGERS.get(kind) or min(_FLOATS.get(kind, 2), 2))
                if kind not in _INTEGERS:
                    parameters += count
                    embeddings += count * any(part in name for part in _UNQUANTISED)
        if not num_bytes:
            num_bytes = sum(path.stat().st_size for path in self.directory.iterdir() if path.suffix in _TORCH)
            parameters = num_bytes // 2
        return StoredWeights(parameters, embeddings, num_bytes) if num_bytes else None

    @property
    def tokens(self) -> Mapping[str, int] | None:
        """Every token of `tokenizer.json` with its id, added ones included; None without that file, or a sound one."""
        return self._tokenizer[0]

    @property
    def tokenizer_problem(self) -> str | None:
        """What is wrong with `tokenizer.json`, if it is there."""
        return self._tokenizer[1]

    @cached_property
    def _tokenizer(self) -> tuple[Mapping[str, int] | None, str | None]:
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            return None, None
        try:
            content = read_json_object(path, TargetError)
        except TargetError as error:
            return None, str(error)
        try:
            vocabulary = content["model"]["vocab"]
            if isinstance(vocabulary, list):  # Unigram: pairs of piece and score, the id is the position
                vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
            added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
            tokens = {**vocabulary, **added}
            if strange := [token for token, number in tokens.items() if type(number) is not int]:
                raise ValueError(f"the id of {strange[0]!r} is no whole number")
            return tokens, None
        except (KeyError, TypeError, ValueError) as error:
            return None, f"{path} is no tokenizer of the tokenizers library: {error!r}"

    @property
    def has_tokenizer(self) -> bool:
        """Whether any tokenizer's file is there."""
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model", "tekken.json")
        return any((self.directory / name).is_file() for name in names)


def _size_and_type(path: Path, name: str, entry: Mapping[str, Any]) -> tuple[int, str]:
    """Of a tensor, by its entry in the header of a file."""
    shape, kind = entry.get("shape"), entry.get("dtype")
    if (
        not isinstance(kind, str)
        or not isinstance(shape, list)
        or any(type(size) is not int for size in shape)
    ):
        raise TargetError(f"{path} is damaged: {name} has no type or shape")
    return math.prod(shape), kind
