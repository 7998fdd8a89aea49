"""The compiled target on OpenVINO, the engine's default."""

from collections.abc import Sequence
from pathlib import Path

from engine.compiled_runner import CompiledRunner
from engine.openvino_graphs import OpenVinoBackend


class OpenVinoRunner(CompiledRunner):
    """A Runner on so many CPU threads (0: all); see `engine.compiled_runner` for the other arguments."""

    def __init__(
        self,
        directory: Path,
        *,
        num_blocks: int,
        threads: int = 0,
        hidden_layers: Sequence[int] = (),
        branch_blocks: int = 0,
    ) -> None:
        super().__init__(
            directory,
            OpenVinoBackend(threads),
            num_blocks=num_blocks,
            hidden_layers=hidden_layers,
            branch_blocks=branch_blocks,
        )
