"""Calls the compiled kernel: a paged cache, the steps over it, and the operator for OpenVINO's graphs."""

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.native.build import library_path

CachePrecision = Literal["fp32", "fp16", "int8"]
_PRECISIONS: Sequence[CachePrecision] = ("fp32", "fp16", "int8")
Integers = NDArray[np.int32]


_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_SCALE_BYTES = 4


def row_bytes(head_size: int, precision: str) -> int:
    """Of a key or a value of one row and head, its scale in int8 included."""
    return head_size * _BYTES[precision] + (_SCALE_BYTES if precision == "int8" else 0)


class NativeError(ValueError):
    """The kernel refuses a step."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of a cache."""

    layers: int
    blocks: int
    kv_heads: int
    head_size: int
    precision: CachePrecision

    @property
    def as_arguments(self) -> tuple[int, int, int, int, int]:
        """As the library takes it."""
        return self.layers, self.blocks, self.kv_heads, self.head_size, _PRECISIONS.index(self.precision)


@dataclass(frozen=True, slots=True)
class StepRequest:
    """One request of a step; see `step.hpp`.

    Attributes:
        rows: new rows, one or more.
        past: rows in the cache that they see, at the beginning of `blocks`.
        blocks: enough for all of them.
        parents: the new row that each follows, -1 for the past alone; None for a chain.
        weighed: whether to sum up the attention that each block gets.
    """

    rows: int
    past: int
    blocks: Sequence[int]
    parents: Sequence[int] | None = None
    weighed: bool = False


@cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where it was not compiled or this processor lacks AVX2."""
    path = library_path()
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    said = (
        "instructions",
        "cache_open",
        "step",
        "block_weights",
        "move_rows",
        "attend",
        "pack_four_bits",
        "pack_eight_bits",
        "multiply",
    )
    for name in said:
        getattr(library, f"drafthouse_{name}").restype = ctypes.c_char_p
    for name in ("cache_number", "cache_bytes"):
        getattr(library, f"drafthouse_{name}").restype = ctypes.c_int64
    return library if library.drafthouse_instructions() else None


def instructions() -> str | None:
    """The instruction set that the kernel runs on, or None where it does not."""
    library = load_library()
    return library.drafthouse_instructions().decode() if library else None


def has_vnni() -> bool:
    """Whether the processor multiplies bytes in one instruction (AVX-512 VNNI or AVX-VNNI)."""
    return bool(loaded_library().drafthouse_has_vnni())


def new_number() -> int:
    """A number for a cache that is to be opened."""
    number: int = loaded_library().drafthouse_cache_number()
    return number


def loaded_library() -> ctypes.CDLL:
    """The library, where `instructions` has said that it runs."""
    library = load_library()
    assert library is not None, "callers ask `instructions` first"
    return library


class NativeCache:
    """The paged KV cache of one network, and its current step.

    Args:
        shape: its sizes.
        number: from `new_number`, for operators that were made before it; None: a new one.

    Attributes:
        number: by which the operator finds it.
        memory: bytes, [layers, blocks, key heads, ...]; see `cache.hpp`. Pages are mapped when they are first written
            to, so a large cache costs what it holds.
    """

    def __init__(self, shape: CacheShape, number: int | None = None) -> None:
        self.shape = shape
        self.number = new_number() if number is None else number
        self._library = library = loaded_library()
        size = library.drafthouse_cache_bytes(*shape.as_arguments)
        self.memory = np.zeros((shape.layers, shape.blocks, size // (shape.layers * shape.blocks)), np.uint8)
        cache = ctypes.c_int64(self.number)
        check(library.drafthouse_cache_open(cache, *shape.as_arguments, pointer(self.memory)))
        weakref.finalize(self, library.drafthouse_cache_close, cache)
        self._num_blocks = 0

    def begin_step(self, requests: Sequence[StepRequest]) -> None:
        """Say what the rows of the next attention are.

        Raises:
            NativeError: blocks, places or parents are out of range, or a block that is written to has two users.
        """
        parents = None
        if any(request.parents is not None for request in requests):
            parents = _integers(
                parent
                for request in requests
                for parent in (range(-1, request.rows - 1) if request.parents is None else request.parents)
            )
        row_begins = _begins(request.rows for request in requests)
        if parents is not None and len(parents) != row_begins[-1]:
            raise NativeError(f"{len(parents)} parents are given for {row_begins[-1]} rows")
        none = np.empty(0, np.int32)
        blocks = np.concatenate([none, *(np.asarray(request.blocks, np.int32) for request in requests)])
        weighed = _integers(request.weighed for request in requests)
        self._num_blocks = len(blocks)
        check(
            self._library.drafthouse_step(
                ctypes.c_int64(self.number),
                len(requests),
                pointer(row_begins),
                pointer(_integers(request.past for request in requests)),
                pointer(_begins(len(request.blocks) for request in requests)),
                pointer(blocks),
                None if parents is None else pointer(parents),
                pointer(weighed) if weighed.any() else None,
            )
        )

    def block_weights(self) -> NDArray[np.float32]:
        """[blocks of all requests of the step]: attention that they got, summed over layers, heads and rows.

        Those of requests that are not weighed got none.
        """
        weights = np.zeros(self._num_blocks, np.float32)
        number, count = ctypes.c_int64(self.number), ctypes.c_int64(len(weights))
        check(self._library.drafthouse_block_weights(number, pointer(weights), count))
        return weights

    def move_rows(self, moves: Sequence[tuple[int, int, int, int]]) -> None:
        """Copy rows of all layers in turn, each (from block, from row, to block, to row)."""
        if moves:
            number, count = ctypes.c_int64(self.number), ctypes.c_int64(len(moves))
            values = _integers(value for move in moves for value in move)
            check(self._library.drafthouse_move_rows(number, count, pointer(values)))

    def attend(
        self,
        layer: int,
        queries: NDArray[np.float32],
        keys: NDArray[np.float32],
        values: NDArray[np.float32],
        *,
        heads: int,
        scale: float,
        window: int = 0,
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Attention of one layer without a graph, [rows, heads * head size]; for tests and measurements."""
        outputs = np.empty_like(queries)
        check(
            self._library.drafthouse_attend(
                ctypes.c_int64(self.number),
                layer,
                heads,
                ctypes.c_float(scale),
                window,
                *(pointer(np.ascontiguousarray(each)) for each in (queries, keys, values)),
                pointer(outputs),
                threads,
            )
        )
        return outputs


def _integers(values: Iterable[int]) -> Integers:
    return np.fromiter(values, np.int32)


def _begins(sizes: Iterable[int]) -> Integers:
    return np.concatenate([[0], np.cumsum(np.fromiter(sizes, np.int32))]).astype(np.int32)


def pointer(values: NDArray[Any]) -> ctypes.c_void_p:
    """As the library takes an array, which has to be contiguous."""
    found: ctypes.c_void_p = values.ctypes.data_as(ctypes.c_void_p)  # keeps the array alive
    return found


def check(wrong: bytes | None) -> None:
    """Raise what the library says, if it says that something is wrong.

    Raises:
        NativeError: with its words.
    """
    if wrong is not None:
        raise NativeError(wrong.decode())
