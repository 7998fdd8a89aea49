"""Linear layers with four-bit weights on the kit's own kernel; see `linear.hpp`."""

import ctypes
import weakref

import numpy as np
from numpy.typing import NDArray

from engine.native.library import check, loaded_library, pointer


class NativeWeights:
    """The weights of a layer, packed for the kernel until this object is gone.

    Args:
        codes: uint8 [outputs, inputs / 2], input 2i in the low half of byte i.
        scales: fp16 [outputs, groups of 32 inputs].
        least: fp16 [outputs, groups], what code 0 stands for.

    Attributes:
        number: by which the operator finds them.

    Raises:
        NativeError: the sizes are not multiples of 16 outputs and 32 inputs.
    """

    def __init__(
        self, codes: NDArray[np.uint8], scales: NDArray[np.float16], least: NDArray[np.float16]
    ) -> None:
        self.outputs, self.inputs = len(codes), 2 * codes.shape[1]
        self._library, number = loaded_library(), ctypes.c_int64()
        arrays = [np.ascontiguousarray(codes, np.uint8)]
        arrays += [np.ascontiguousarray(each, np.float16) for each in (scales, least)]
        pointers = [pointer(each) for each in arrays]
        check(
            self._library.drafthouse_weights_open(self.inputs, self.outputs, *pointers, ctypes.byref(number))
        )
        self.number = number.value
        weakref.finalize(self, self._library.drafthouse_weights_close, number)

    def multiply(self, inputs: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
        """[rows, inputs] to [rows, outputs] without a graph; for tests and measurements."""
        inputs = np.ascontiguousarray(inputs, np.float32)
        outputs = np.empty((len(inputs), self.outputs), np.float32)
        number, rows = ctypes.c_int64(self.number), ctypes.c_int64(len(inputs))
        check(self._library.drafthouse_multiply(number, rows, pointer(inputs), pointer(outputs), threads))
        return outputs
