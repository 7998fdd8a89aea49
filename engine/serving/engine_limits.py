"""What an engine was built for, from its config.json, as far as `tensorrt_llm_bls` has to keep to it."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineLimits:
    """A target engine.

    Attributes:
        max_sequence_length: prompt, output and draft of a call, in tokens; 0: not said.
        max_draft_length: tokens of a draft.
        redrafter_samples: whether a ReDrafter engine was built for sampling.
    """

    max_sequence_length: int = 0
    max_draft_length: int = 0
    redrafter_samples: bool = False

    @classmethod
    def read(cls, engine: Path) -> "EngineLimits":
        """Read an engine's directory."""
        content = json.loads((engine / "config.json").read_text(encoding="utf-8"))
        build = content.get("build_config", {})
        greedy = content.get("pretrained_config", {}).get("redrafter_greedy_search", True)
        return cls(int(build.get("max_seq_len") or 0), int(build.get("max_draft_len") or 0), not greedy)

    @property
    def longest(self) -> int:
        """Prompt and output of a generation that is drafted for; 0: not said.

        A call without a draft is counted as if it had the longest (`LlmRequest::validate` in
        batch_manager/llmRequest.cpp), so the last tokens of the limit cannot be reached call by call.
        """
        return max(0, self.max_sequence_length - self.max_draft_length)
