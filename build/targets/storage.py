"""Writing safetensors one tensor at a time.

The `safetensors` package writes only what is in memory all at once; converting a model tensor by tensor needs no more
memory than its largest one.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deployments.files.safetensors import METADATA, header_bytes

STORAGE_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""NumPy type of each safetensors type that holds weights; importing this teaches NumPy bfloat16."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written: name, safetensors type, shape, and the function that gives its values."""

    name: str
    kind: str
    shape: tuple[int, ...]
    produce: Callable[[], NDArray[Any]]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * STORAGE_TYPES[self.kind].itemsize


def write_safetensors(path: Path, plans: Iterable[TensorPlan], on_written: Callable[[int], None]) -> None:
    """Write the tensors in the given order; `on_written` gets the bytes of each.

    Raises:
        ValueError: a producer returned another shape than planned, or a value that is not finite in the
        planned type. OSError: the file cannot be written.
    """
    plans = list(plans)
    with path.open("xb") as file:
        file.write(_header(plans))
        for plan in plans:
            file.write(_stored(plan).tobytes())
            on_written(plan.num_bytes)


def _header(plans: list[TensorPlan]) -> bytes:
    entries: dict[str, Any] = {METADATA: {"format": "pt"}}
    offset = 0
    for plan in plans:
        entries[plan.name] = {
            "dtype": plan.kind,
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + plan.num_bytes],
        }
        offset += plan.num_bytes
    return header_bytes(entries)


def _stored(plan: TensorPlan) -> NDArray[Any]:
    values = plan.produce()
    if values.shape != plan.shape:
        raise ValueError(f"{plan.name} has shape {list(values.shape)} where {list(plan.shape)} was expected")
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which the next check reports
        stored = np.ascontiguousarray(values, dtype=STORAGE_TYPES[plan.kind])
    if not np.isfinite(stored).all():
        raise ValueError(f"{plan.name} holds values that are not finite as {plan.kind}")
    return stored
