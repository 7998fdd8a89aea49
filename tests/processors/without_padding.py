"""A pytest plugin that takes the padding of attention away; see `engine.attention_metadata`."""

from typing import Any

from engine import openvino_graphs


class _OneThread(openvino_graphs._Compiled):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.threads = 1


openvino_graphs._Compiled = _OneThread  # type: ignore[assignment,misc]
