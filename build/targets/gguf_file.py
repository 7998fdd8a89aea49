"""Reading access to a GGUF file: typed metadata and tensors, with errors that name the file and the key.

GGUF is llama.cpp's single-file format: key-value metadata (hyper-parameters under the name of the
architecture, the whole tokenizer) followed by tensors, most of them quantised in blocks. The `gguf` package
parses and dequantises it with NumPy alone.
"""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from build.targets.errors import TargetError, UnsupportedModelError

T = TypeVar("T")
_MOST_ITEMS = 2**23
"""Of an array in the metadata; vocabularies and merges have some hundred thousand."""


class _BoundedReader(GGUFReader):
    """The package's reader, held to the size of the file.

    It takes numbers of entries on trust: 49 bytes that announce 10**12 of them keep it busy for ever, since what lies
    behind the end of the file is read as nothing. An array within an array, which no model has, it reads by recursion.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it has {len(self.data)} bytes, but says that something ends at {end}")
        return super()._get(int(offset), dtype, int(count), override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if GGUFValueType(raw_type) is GGUFValueType.ARRAY:
            items = int(self._get(orig_offs + 4, np.uint64)[0])
            if items > min(_MOST_ITEMS, len(self.data)):
                raise ValueError(f"an array of {items} entries, in {len(self.data)} bytes")
            if int(self._get(orig_offs, np.uint32)[0]) == GGUFValueType.ARRAY:
                raise ValueError("an array within an array")
        return super()._get_field_parts(orig_offs, raw_type)


class GgufFile:
    """An open GGUF file. Tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Parse metadata and the tensor table.

        Raises:
            TargetError: the file is missing, unreadable, damaged or incomplete, or one part of several.
        """
        self.path = path
        self._reader = _open(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if self.value("split.count", int, 1) > 1:
            raise TargetError(
                f"{path} is one part of several; join them with "
                f"`llama-gguf-split --merge {path.name} whole.gguf` and pass the result"
            )
        self.architecture = self.required("general.architecture", str)

    def keys_under(self, prefix: str) -> list[str]:
        """Keys of metadata that begin so."""
        return [key for key in self._reader.fields if key.startswith(prefix)]

    @property
    def tensor_names(self) -> set[str]:
        """Names of all tensors, as GGUF spells them."""
        return set(self._tensors)

    def value(self, key: str, kind: type[T], default: T) -> T:
        """Metadata under `key`, or `default` where it is absent.

        Raises:
            TargetError: the value is of another type, or not valid UTF-8.
        """
        content = self.content(key)
        if content is None:
            return default
        if not isinstance(content, kind) or (kind is int and isinstance(content, bool)):
            raise TargetError(
                f"{self.path}: metadata {key} is of type {type(content).__name__}; it must be {kind.__name__}"
            )
        return content

    def content(self, key: str) -> Any:
        """Metadata under `key` of whatever type, or None where it is absent.

        Raises:
            TargetError: it cannot be read.
        """
        field = self._reader.get_field(key)
        if field is None:
            return None
        try:
            return field.contents()
        except (UnicodeDecodeError, ValueError, IndexError) as error:
            raise TargetError(f"{self.path}: metadata {key} is damaged: {error}") from error

    def required(self, key: str, kind: type[T]) -> T:
        """Metadata under `key`.

        Raises:
            TargetError: it is absent or of another type.
        """
        if not self.has(key):
            raise TargetError(f"{self.path}: metadata {key} is missing; a complete model file has it")
        return self.value(key, kind, kind())

    def has(self, key: str) -> bool:
        """Whether metadata has the key."""
        return self._reader.get_field(key) is not None

    def setting(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Hyper-parameter of the architecture, as in `llama.block_count`; required without a default."""
        full = f"{self.architecture}.{key}"
        return self.required(full, kind) if default is None else self.value(full, kind, default)

    def decimal(self, key: str, default: float | None = None) -> float:
        """A hyper-parameter that is stored as float32, as the shortest decimal that is the same float32."""
        return shortest(self.setting(key, float, default))

    def tensor_type(self, name: str) -> str:
        """Storage type of a tensor, as in `Q4_1`."""
        return str(GGMLQuantizationType(self._tensors[name].tensor_type).name)

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, slowest dimension first (GGUF itself stores it the other way round)."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Values of a tensor, dequantised to float32.

        Raises:
            UnsupportedModelError: the storage type cannot be dequantised.
        """
        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name} is stored as {self.tensor_type(name)}, which cannot be "
                "dequantised here; take the file in Q8_0, F16 or BF16"
            ) from None
        return np.asarray(values, dtype=np.float32).reshape(self.tensor_shape(name))


def is_gguf(path: Path) -> bool:
    """Whether the file starts as every GGUF file does."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _open(path: Path) -> GGUFReader:
    try:
        return _BoundedReader(path)
    except FileNotFoundError:
        raise TargetError(f"{path} does not exist") from None
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise TargetError(
            f"{path} is not a complete GGUF file ({error}); fetch it again and compare its size with the "
            "original"
        ) from error


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for the stored 9.999999747378752e-06."""
    return float(str(np.float32(value)))
