"""Tensor files of checkpoints as NumPy arrays: safetensors, its sharded form, and PyTorch pickles.

Half-precision tensors keep their type (bfloat16 through `ml_dtypes`), so a tensor that is read and written is the
same bit for bit. Pickles need PyTorch and are read with `weights_only`, which runs no code from the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deployments.files.reading import read_json_object
from deployments.files.writing import replace_file
from speculators.formats.errors import CheckpointError
from speculators.formats.shards import shard_files

Array = NDArray[Any]
Tensors = dict[str, Array]

FLOAT_TYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""NumPy type of each type that weights may have; importing this teaches NumPy bfloat16."""

_INDEX_SUFFIX = ".index.json"
_NAMES_SHOWN = 4


def read_tensors(path: Path, wanted: Callable[[str], bool] | None = None) -> Tensors:
    """The tensors of one file, or of a sharded checkpoint when `path` is its `.index.json`.

    Args:
        path: a `.safetensors` file, an index, or a PyTorch pickle (any other name).
        wanted: which tensors to read, by name; all without it.

    Raises:
        CheckpointError: the file is missing, truncated, or holds something else than tensors.
    """
    keep = wanted or _everything
    if path.name.endswith(_INDEX_SUFFIX):
        return _read_shards(path, keep)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    return read(path, keep)


def tensor_names(path: Path) -> set[str]:
    """What tensors there are; of safetensors files the headers alone are read. `path` and errors: `read_tensors`."""
    names: set[str] = set()

    def noted(name: str) -> bool:
        names.add(name)
        return False

    read_tensors(path, noted)
    return names


def find_file(directory: Path, names: Sequence[str]) -> Path:
    """The first of the files that is there, or of their indices where they are in shards.

    Raises:
        CheckpointError: none is.
    """
    for name in names:
        for path in (directory / name, directory / f"{name}{_INDEX_SUFFIX}"):
            if path.is_file():
                return path
    raise CheckpointError(f"{directory} has no weights; looked for {', '.join(names)} and their shards")


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a safetensors file; an existing one is replaced at once.

    Raises:
        OSError: the file cannot be written.
    """
    whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with replace_file(path) as partial:
        mode = partial.stat().st_mode
        try:
            save_file(whole, partial, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        partial.chmod(mode)  # safetensors leaves it readable to its owner alone, whatever the umask says


def write_pickle(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write a PyTorch pickle of plain tensors; an existing file is replaced at once.

    Raises:
        CheckpointError: PyTorch is not installed.
        OSError: the file cannot be written.
    """
    torch = _torch(path)
    state = {name: torch_tensor(values) for name, values in tensors.items()}
    with replace_file(path) as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as error:  # what torch.save raises where the disk is full
            raise OSError(f"{path} cannot be written: {error}") from error


def as_dtype(tensors: Mapping[str, Array], dtype: str) -> Tensors:
    """The tensors with their weights in another floating-point type; integers and truth values are left alone.

    Raises:
        CheckpointError: `dtype` is no weight type, or a weight is too large for it; the message names the tensor.
    """
    if dtype not in FLOAT_TYPES:
        raise CheckpointError(f"weights cannot be {dtype!r}; they can be {', '.join(FLOAT_TYPES)}")
    return {name: _cast(name, values, dtype) for name, values in tensors.items()}


def is_float(values: Array) -> bool:
    """Whether an array holds weights (bfloat16 is no sub-type of NumPy's floating types)."""
    return values.dtype in FLOAT_TYPES.values()


def dtype_of(tensors: Mapping[str, Array]) -> str:
    """The one type of all weights; `float32` where types are mixed, which holds each exactly."""
    found = {str(values.dtype) for values in tensors.values() if is_float(values)}
    return found.pop() if len(found) == 1 else "float32"


def torch_tensor(values: Array) -> Any:
    """An array as a PyTorch tensor of the same type and bits."""
    import torch

    if values.dtype == FLOAT_TYPES["bfloat16"]:
        return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(values))


def numpy_array(tensor: Any) -> Array:
    """A PyTorch tensor as an array of the same type and bits."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return np.asarray(plain.view(torch.int16).numpy().view(FLOAT_TYPES["bfloat16"]))
    return np.asarray(plain.numpy())


def _everything(name: str) -> bool:
    return True


def _read_safetensors(path: Path, keep: Callable[[str], bool]) -> Tensors:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: np.asarray(file.get_tensor(name)) for name in file.keys() if keep(name)}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); fetch it again") from error


def _read_shards(index: Path, keep: Callable[[str], bool]) -> Tensors:
    weight_map = read_json_object(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty; it maps tensors to files")
    tensors: Tensors = {}
    for file in shard_files(index, [file for name, file in weight_map.items() if keep(name)]):
        tensors.update(read_tensors(file, keep))
    return tensors


def _read_pickle(path: Path, keep: Callable[[str], bool]) -> Tensors:
    torch = _torch(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged, or holds more than plain tensors ({reason}); fetch it again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; it must hold tensors by name")
    foreign = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if foreign:
        raise CheckpointError(f"{path}: {foreign[0]!r} is no tensor")
    return {str(name): numpy_array(value) for name, value in state.items() if keep(str(name))}


def _cast(name: str, values: Array, dtype: str) -> Array:
    if not is_float(values) or values.dtype == FLOAT_TYPES[dtype]:
        return values
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which the next check reports
        cast = values.astype(FLOAT_TYPES[dtype])
    if not np.isfinite(cast).all():
        raise CheckpointError(f"{name} holds values that do not fit {dtype}; use bfloat16 or float32")
    return cast


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path} is a PyTorch pickle, and PyTorch is not installed; install the extra `train` "
            "(pip install 'drafthouse[train]'), or use the safetensors file"
        ) from None
    return torch


def joined(names: Iterable[str]) -> str:
    """Names for an error message, the first few and how many more."""
    every = sorted(names)
    more = f" and {len(every) - _NAMES_SHOWN} more" if len(every) > _NAMES_SHOWN else ""
    return ", ".join(every[:_NAMES_SHOWN]) + more
