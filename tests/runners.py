"""The compiled target on OpenVINO, the engine's default, with the settings that a test is about."""

from collections.abc import Sequence
from pathlib import Path

from engine.attention_kernels import ANY_ATTENTION, Attention
from engine.compiled_runner import CompiledRunner
from engine.openvino_graphs import OpenVinoBackend


def openvino_runner(
    directory: Path,
    *,
    num_blocks: int,
    threads: int = 0,
    hidden_layers: Sequence[int] = (),
    branch_blocks: int = 0,
    attention: Attention = ANY_ATTENTION,
) -> CompiledRunner:
    """See `CompiledRunner` and `OpenVinoBackend` for the arguments."""
    return CompiledRunner(
        directory,
        OpenVinoBackend(threads, attention),
        num_blocks=num_blocks,
        hidden_layers=hidden_layers,
        branch_blocks=branch_blocks,
    )
