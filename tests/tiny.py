"""Tiny random targets of every family, compiled: what tests of graph, runner, engine and benches run on.

The models have two to four layers, the byte-level vocabulary of `tests.build.targets.tiny_models`, and heads
of 32, the smallest that OpenVINO's paged attention takes. Compiling one takes 10 ms, loading it 100 ms.

Example::

    targets = TinyTargets(tmp_path)
    runner = targets.runner("llama", "int8")
    weights = targets.weights("llama")        # for `tests.reference_model.forward`
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from build.compile import compile_engine
from build.targets.architecture import Architecture
from build.targets.weights import Weights, load_weights
from engine.attention_kernels import ANY_ATTENTION, Attention, KernelName
from engine.compiled_runner import CompiledRunner
from engine.native.library import instructions
from engine.openvino_graphs import OpenVinoBackend
from tests.build.targets.tiny_models import FAMILIES, random_weights, tiny_config, write_huggingface
from tests.runners import openvino_runner

MAX_LENGTH = 256
NUM_BLOCKS = 64
BRANCH_BLOCKS = 128
# The kit's own where it can run, as after `make setup` with a C++ compiler.
KERNELS: tuple[KernelName, ...] = ("native", "openvino") if instructions() else ("openvino",)
# Of those tests that compare the bits of different steps; others do with one where several processes run tests.
SEVERAL_THREADS = int(os.environ.get("DRAFTHOUSE_TEST_THREADS", "2"))
THREADS = min(SEVERAL_THREADS, 1) if "PYTEST_XDIST_WORKER" in os.environ else SEVERAL_THREADS

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama heads of 64": ("llama", {"head_dim": 64}),
    "llama of 8 layers": ("llama", {"num_hidden_layers": 8}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama3 rope": ("llama", {"rope_scaling": _LLAMA3}),
    "linear rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "yarn rope": ("qwen2", {"rope_scaling": _YARN}),
    "mistral window 9": ("mistral", {"sliding_window": 9}),
    "mistral window 200": ("mistral", {"sliding_window": 200}),
    "qwen2 window in one layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3 biases": ("qwen3", {"attention_bias": True}),
}
# Two layers of SmolLM2-135M: kernels are chosen by matrix sizes, so small ones cannot speak for real ones.
FULL_SIZE = "full size"
_FULL_SIZE_SETTINGS = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


class TinyTargets:
    """Sources, engines and runners by variant, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runners: dict[tuple[str, str, int, KernelName | None, int], CompiledRunner] = {}

    def source(self, variant: str) -> Path:
        """Model directory in Hugging Face layout, with a tokenizer."""
        directory = self.root / "sources" / variant.replace(" ", "-")
        if not directory.exists():
            full_size = variant == FULL_SIZE
            family, changes = ("llama", _FULL_SIZE_SETTINGS) if full_size else VARIANTS[variant]
            config = tiny_config(family, **{"head_dim": 32, **changes})
            write_huggingface(directory, config, random_weights(Architecture.from_config(config)))
        return directory

    def weights(self, variant: str) -> Weights:
        """The weights, and in `.architecture` what they are the weights of."""
        return load_weights(self.source(variant))

    def engine(self, variant: str, precision: str) -> Path:
        """Directory of the compiled engine."""
        directory = self.root / "engines" / f"{variant.replace(' ', '-')}-{precision}"
        compile_engine(self.source(variant), directory, precision=precision, max_sequence_length=MAX_LENGTH)
        return directory

    def runner(
        self, variant: str, precision: str, kernel: KernelName | None = None, *, threads: int = THREADS
    ) -> CompiledRunner:
        """The loaded engine with NUM_BLOCKS cache blocks; it is shared, so they hold what others left."""
        return self._runner(variant, precision, BRANCH_BLOCKS, kernel, threads)

    def plain_runner(
        self, variant: str, precision: str, kernel: KernelName | None = None, *, threads: int = THREADS
    ) -> CompiledRunner:
        """One that takes chains only on OpenVINO's attention kernel."""
        return self._runner(variant, precision, 0, kernel, threads)

    def _runner(
        self, variant: str, precision: str, branch_blocks: int, kernel: KernelName | None, threads: int
    ) -> CompiledRunner:
        key = variant, precision, branch_blocks, kernel, threads
        if key not in self._runners:
            self._runners[key] = openvino_runner(
                self.engine(variant, precision),
                num_blocks=NUM_BLOCKS,
                threads=threads,
                branch_blocks=branch_blocks,
                attention=Attention(kernel),
            )
        return self._runners[key]


def refuse_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever makes a backend of OpenVINO fail."""

    def refuse(backend: OpenVinoBackend, threads: int = 0, attention: Attention = ANY_ATTENTION) -> None:
        raise AssertionError("OpenVINO runs what the spec gives to another backend")

    monkeypatch.setattr(OpenVinoBackend, "__init__", refuse)
