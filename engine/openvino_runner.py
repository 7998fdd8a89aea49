"""The compiled target on OpenVINO, the engine's default."""

from collections.abc import Sequence
from pathlib import Path

from engine.attention_kernels import ANY_ATTENTION, Attention
from engine.compiled_runner import CompiledRunner
from engine.openvino_graphs import OpenVinoBackend


class OpenVinoRunner(CompiledRunner):
    """A Runner on so many CPU threads (0: all); see `CompiledRunner` and `OpenVinoBackend` for the arguments."""

    def __init__(
        self,
        directory: Path,
        *,
        num_blocks: int,
        threads: int = 0,
        hidden_layers: Sequence[int] = (),
        branch_blocks: int = 0,
        attention: Attention = ANY_ATTENTION,
    ) -> None:
        super().__init__(
            directory,
            OpenVinoBackend(threads, attention),
            num_blocks=num_blocks,
            hidden_layers=hidden_layers,
            branch_blocks=branch_blocks,
        )
