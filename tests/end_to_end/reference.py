"""What a deployment has to answer: plain decoding, one request at a time, without Triton, ensemble or streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.request import GenerationRequest
from engine.serving.text import TextCodec
from tests.end_to_end.tiny_tokenizers import END_ID
from tests.engine.driving import Outcome, generate
from tests.runners import openvino_runner

NUM_BLOCKS = 16


class Reference:
    """The compiled engine of a deployment in this process."""

    def __init__(self, engine: Path) -> None:
        self.codec = TextCodec(engine)
        self._runner = openvino_runner(engine, num_blocks=NUM_BLOCKS, threads=1)

    def outcome(self, prompt: str, max_tokens: int = 16, **fields: Any) -> Outcome:
        """The events of the request; `fields` are those of `GenerationRequest`."""
        ids = tuple(self.codec.encode(prompt))
        request = GenerationRequest(ids, max_tokens, **{"end_ids": frozenset({END_ID}), **fields})
        return generate(self._runner, request)

    def tokens(self, prompt: str, max_tokens: int = 16, **fields: Any) -> list[int]:
        return self.outcome(prompt, max_tokens, **fields).tokens

    def text(self, prompt: str, max_tokens: int = 16, **fields: Any) -> str:
        return self.codec.decode(self.tokens(prompt, max_tokens, **fields))
