"""`config.json` beside Medusa heads, as the Medusa repository writes it."""

from __future__ import annotations

from pydantic import PositiveInt

from speculators.formats.config import PublishedConfig


class MedusaConfig(PublishedConfig):
    """The keys that are read; width and vocabulary are not among them, they follow from the tensors.

    Attributes:
        medusa_num_heads: heads; head k predicts the token k + 2 positions after the hidden state's own.
        medusa_num_layers: residual blocks in each head.
        base_model_name_or_path: the target, as its trainer named it.
    """

    medusa_num_heads: PositiveInt
    medusa_num_layers: PositiveInt = 1
    base_model_name_or_path: str | None = None

    def told_to_vllm(self, hidden_size: int, vocab_size: int, drafted: int) -> MedusaConfig:
        """A copy for heads that use the target's output matrix, with what vLLM's `Medusa` wants to be told.

        Args:
            hidden_size: H of the target.
            vocab_size: V of the target.
            drafted: W, its tokens that can be drafted (see `speculators.formats.draft_vocabulary`).
        """
        return self.changed(
            model_type="medusa",
            architectures=["MedusaModel"],
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            truncated_vocab_size=drafted,
            medusa_fc_bias=True,
            original_lm_head=True,
        )
