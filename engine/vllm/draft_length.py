"""How much a proposer of the kit's may draft in vLLM."""

from __future__ import annotations

from typing import Any


class DraftLength:
    """The draft length that vLLM's configuration asks for, by batch size, within the length of a text."""

    def __init__(self, vllm_config: Any) -> None:
        """Take length, schedule and limits from it."""
        speculation = vllm_config.speculative_config
        self._longest = int(speculation.num_speculative_tokens)
        self._max_length = int(vllm_config.model_config.max_model_len)
        self._schedule: list[int] | None = None
        if speculation.num_speculative_tokens_per_batch_size:
            from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

            self._schedule = build_dynamic_sd_schedule_lookup(
                speculation.num_speculative_tokens_per_batch_size,
                vllm_config.scheduler_config.max_num_seqs,
                self._longest,
            )

    def most(self, rows: int, tokens: int) -> int:
        """How many tokens to draft after a text of `tokens` tokens, in a batch of `rows` rows."""
        most = self._longest if self._schedule is None else self._schedule[rows]
        # The target adds a token of its own, for which there must be room.
        return max(0, min(most, self._max_length - tokens - 1))
