"""One function for all families, for build plans and the command line; every failure is a ConversionError.

convert_drafter("medusa", Path("heads"), Path("llama-checkpoint"), Path("out"), tp_size=2)
restore_drafter("medusa", Path("out"), Path("heads-again"))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from build.converters.eagle import convert_eagle, restore_eagle
from build.converters.eagle3 import convert_eagle3
from build.converters.errors import ConversionError
from build.converters.medusa import convert_medusa, restore_medusa
from build.converters.mlp_speculator import convert_mlp_speculator
from build.converters.output import Conversion
from build.converters.redrafter import convert_redrafter, restore_redrafter
from speculators.formats.errors import CheckpointError

CONVERTERS: Mapping[str, Callable[..., Conversion]] = {
    "medusa": convert_medusa,
    "eagle": convert_eagle,
    "eagle3": convert_eagle3,
    "redrafter": convert_redrafter,
}
RESTORERS: Mapping[str, Callable[[Path, Path], Conversion]] = {
    "medusa": restore_medusa,
    "eagle": restore_eagle,
    "redrafter": restore_redrafter,
}
FAMILIES = (*CONVERTERS, "mlp_speculator")


def convert_drafter(family: str, drafter: Path, target: Path, output: Path, **settings: Any) -> Conversion:
    """Convert a published drafter for TensorRT-LLM 1.2.1.

    Args:
        family: one of `FAMILIES`.
        drafter: the published checkpoint.
        target: a TensorRT-LLM checkpoint, or a model in Hugging Face layout where no engine is built.
        output: directory to write; the result of an earlier conversion is replaced.
        settings: keyword arguments of the family's own function (`build.converters.<family>`).

    Raises:
        ConversionError: unknown family or setting, a checkpoint is missing, damaged or does not fit, or the output
            cannot be written. Nothing half-written is left.
    """
    with _one_error():
        if family == "mlp_speculator":
            convert_mlp_speculator(drafter, target)
        if family not in CONVERTERS:
            raise ConversionError(f"no drafter family {family!r}; known are {', '.join(FAMILIES)}")
        convert = CONVERTERS[family]
        known = inspect.signature(convert).parameters
        for name in settings:
            if name not in known:
                raise ConversionError(
                    f"{family} has no setting {name!r}; it has {', '.join(list(known)[3:])}"
                )
        return convert(drafter, target, output, **settings)


def restore_drafter(family: str, checkpoint: Path, output: Path) -> Conversion:
    """Write the drafter inside a TensorRT-LLM checkpoint in its published layout.

    Args:
        family: one of `RESTORERS`.
        checkpoint: of MedusaForCausalLM, EagleForCausalLM or a ReDrafter class.
        output: directory to write; the result of an earlier conversion is replaced.

    Raises:
        ConversionError: unknown family, the checkpoint is missing, damaged or has no such drafter, or the output
            cannot be written. Nothing half-written is left.
    """
    with _one_error():
        if family not in RESTORERS:
            raise ConversionError(
                f"there is no checkpoint of TensorRT-LLM with {family!r}; known are {', '.join(RESTORERS)}"
            )
        return RESTORERS[family](checkpoint, output)


@contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except (CheckpointError, OSError) as error:
        raise ConversionError(str(error)) from error
