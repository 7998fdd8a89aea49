"""Moving weights between checkpoints and PyTorch modules; a weight that was never loaded is NaN, so it is loud."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from speculators.formats.checkpoint import check_tensors
from speculators.formats.tensors import Array, Tensors, numpy_array, torch_tensor

_UNSET = torch.iinfo(torch.int64).min


def unset(module: nn.Module) -> None:
    """Make every parameter NaN, and every integer buffer an index that no table has."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
        for buffer in module.buffers():
            if buffer.dtype == torch.int64:
                buffer.fill_(_UNSET)


def load_arrays(module: nn.Module, tensors: Mapping[str, Array]) -> None:
    """Set all parameters and stored buffers; names are the module's own, tied parameters by their first name.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    slots = _slots(module)
    shapes = {name: tuple(slot.shape) for name, slot in slots.items()}
    integers = frozenset(name for name, slot in slots.items() if not slot.is_floating_point())
    check_tensors(type(module).__name__, tensors, shapes, integers)
    with torch.no_grad():
        for name, slot in slots.items():
            slot.copy_(torch_tensor(tensors[name]))


def export_arrays(module: nn.Module) -> Tensors:
    """All parameters and stored buffers as arrays of their own type; the inverse of `load_arrays`."""
    return {name: numpy_array(slot) for name, slot in _slots(module).items()}


def _slots(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
    stored = module.state_dict(keep_vars=True)
    return parameters | {name: slot for name, slot in module.named_buffers() if name in stored}
