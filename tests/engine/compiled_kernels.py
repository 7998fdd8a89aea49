"""Triton's kernels compiled for devices that are not here."""

from __future__ import annotations

import os
import subprocess
import sys

_PROGRAM = """
import re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from engine import torch_kernel

capability, tile, width = map(int, sys.argv[1:])
for kernel in (torch_kernel._read_chunk, torch_kernel._join_chunks):
    constants = {"SHARE": 4, "HEADS": 8, "WIDTH": width, "TILE": tile, "WINDOW": 0, "BLOCK": 32, "PLACES": 64}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    kinds = dict.fromkeys(("queries", "keys", "values", "found"), "*bf16")
    kinds |= dict.fromkeys(("mixed", "tops", "sums"), "*fp32") | {"scale": "fp32"}
    kinds |= dict.fromkeys(("rows", "span", "chunks", "table"), "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*i64") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert "cubin" in compiled.asm
    print("local", len(re.findall("[.]local", compiled.asm["ptx"])))
"""


def local_memory(*, capability: int, tile: int, width: int) -> list[int]:
    """Places of each kernel's code that name local memory, which is what does not fit the registers."""
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, *map(str, (capability, tile, width))]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("local")]
