"""Runs every part of a kernel library; under sanitizers it ends with what they found.

python -m tests.engine.native.exercise LIBRARY
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from engine.native import library
from engine.native.library import CachePrecision, NativeError, StepRequest
from engine.native.linear import NativeWeights
from tests.engine.native.contexts import SHAPES, Context

PRECISIONS: tuple[CachePrecision, ...] = ("fp32", "fp16", "int8")
TREE = (-1, 0, 0, 1, 1, 2, 3, 3, 5, 6, 9, 10, 11, 0, 0, 0, 0, 0)


def main() -> None:
    """Prompts, chains, trees, moves, weights, and steps that are refused; each on each instruction set."""
    with patch("engine.native.library.library_path", return_value=Path(sys.argv[1])):
        loaded: Any = library.load_library()
    if len(sys.argv) > 2:  # the negative control
        context = Context(SHAPES[0], 64, seed=1)
        cache = context.cache("fp32")
        cache.begin_step([StepRequest(64, 0, context.blocks)])
        short = context.queries[:8].copy()
        cache.attend(1, short, context.keys, context.values, heads=SHAPES[0].queries, scale=1.0)
        return
    for name in ("avx512", "avx2"):
        if not loaded.drafthouse_use_instructions(name.encode()):
            continue
        for precision in PRECISIONS:
            for heads in SHAPES:
                context = Context(heads, 330, seed=1)
                cache = context.cache(precision)
                context.step(cache, range(287), 0, threads=3)
                context.step(cache, range(287, 305), 287, parents=TREE, threads=2)
                context.step(cache, range(287, 289), 287, weighed=True)
                cache.block_weights()
                cache.move_rows([(context.blocks[9], 5, context.blocks[8], 31), (63, 0, 63, 0)])
                context.step(cache, range(289, 330), 289)
                for wrong in (
                    StepRequest(1, 0, (64,)),
                    StepRequest(9, 30, (1,)),
                    StepRequest(2, 0, (1,), (-1, 5)),
                ):
                    try:
                        cache.begin_step([wrong])
                    except NativeError:
                        continue
                    raise AssertionError(f"{wrong} was taken")
        random = np.random.default_rng(1)
        for outputs, inputs in ((16, 32), (48, 96), (576, 1536)):
            groups = random.standard_normal((2, outputs, inputs // 32)).astype(np.float16)
            codes = random.integers(0, 256, (outputs, inputs // 2), np.uint8)
            values = random.integers(-127, 128, (outputs, inputs), np.int8)
            for weights in (
                NativeWeights.four_bits(codes, *groups),
                NativeWeights.eight_bits(values, np.ones(outputs, np.float32)),
            ):
                for rows in (1, 2, 3, 7, 8, 19):
                    weights.multiply(random.standard_normal((rows, inputs), np.float32), threads=3)
        print(f"{name}: {len(PRECISIONS) * len(SHAPES)} caches")


if __name__ == "__main__":
    main()
