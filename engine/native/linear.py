"""Linear layers with weights of four or eight bits on the kit's own kernel; see `linear.hpp`."""

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.native.library import check, loaded_library, pointer


class NativeWeights:
    """The weights of a layer, packed for the kernel until this object is gone; from `four_bits` or `eight_bits`.

    Attributes:
        inputs, outputs: sizes of a row.
        num_bytes: of what it was made from.
        number: by which the operator finds them.
    """

    def __init__(self, kind: str, inputs: int, *arrays: NDArray[Any]) -> None:
        self.outputs, self.inputs = len(arrays[0]), inputs
        self.num_bytes = sum(each.nbytes for each in arrays)
        self._library, number = loaded_library(), ctypes.c_int64()
        pack = getattr(self._library, f"drafthouse_pack_{kind}")
        check(pack(self.inputs, self.outputs, *map(pointer, arrays), ctypes.byref(number)))
        self.number = number.value
        weakref.finalize(self, self._library.drafthouse_weights_close, number)

    @classmethod
    def four_bits(
        cls, codes: NDArray[np.uint8], scales: NDArray[np.float16], least: NDArray[np.float16]
    ) -> "NativeWeights":
        """Weights in groups of 32 inputs.

        Args:
            codes: uint8 [outputs, inputs / 2], input 2i in the low half of byte i.
            scales: fp16 [outputs, groups].
            least: fp16 [outputs, groups], what code 0 stands for.

        Raises:
            NativeError: the sizes are not multiples of 16 outputs and 32 inputs.
        """
        arrays = [np.ascontiguousarray(codes, np.uint8)]
        arrays += [np.ascontiguousarray(each, np.float16) for each in (scales, least)]
        return cls("four_bits", 2 * codes.shape[1], *arrays)

    @classmethod
    def eight_bits(cls, values: NDArray[np.int8], scales: NDArray[np.float32]) -> "NativeWeights":
        """Weights with a scale an output.

        Args:
            values: int8 [outputs, inputs].
            scales: fp32 [outputs].

        Raises:
            NativeError: the sizes are not multiples of 16 outputs and 32 inputs.
        """
        arrays = np.ascontiguousarray(values, np.int8), np.ascontiguousarray(scales, np.float32)
        return cls("eight_bits", values.shape[1], *arrays)

    def multiply(self, inputs: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
        """[rows, inputs] to [rows, outputs] without a graph; for tests and measurements."""
        inputs = np.ascontiguousarray(inputs, np.float32)
        outputs = np.empty((len(inputs), self.outputs), np.float32)
        number, rows = ctypes.c_int64(self.number), ctypes.c_int64(len(inputs))
        check(self._library.drafthouse_multiply(number, rows, pointer(inputs), pointer(outputs), threads))
        return outputs
