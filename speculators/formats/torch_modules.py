"""Moving weights between checkpoints and PyTorch modules; a weight that was never loaded is NaN, so it is loud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from torch import nn

from speculators.formats.checkpoint import Checkpoint, check_tensors
from speculators.formats.config import ConfigType
from speculators.formats.tensors import Array, Tensors, numpy_array, torch_tensor

_UNSET = torch.iinfo(torch.int64).min


Drafter = TypeVar("Drafter", bound="CheckpointModule")  # type: ignore[type-arg]


class CheckpointModule(nn.Module, Generic[ConfigType]):
    """A drafter that is made from its config, with parameters named as in its checkpoints.

    Attributes:
        not_loaded: tensors of a checkpoint that are the target's.
    """

    not_loaded: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: ConfigType) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_checkpoint(cls: type[Drafter], checkpoint: Checkpoint[ConfigType]) -> Drafter:
        """A float32 model with the weights of a checkpoint.

        Raises:
            CheckpointError: the tensors do not fit the config.
        """
        model = cls(checkpoint.config)
        own = {name: values for name, values in checkpoint.tensors.items() if name not in cls.not_loaded}
        load_arrays(model, own)
        return model

    def to_checkpoint(self) -> Checkpoint[ConfigType]:
        """The weights in their own type, without those that are not loaded."""
        return Checkpoint(self.config, export_arrays(self))


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
