"""`config.json` of a ReDrafter head, as apple/ml-recurrent-drafter writes it and TensorRT-LLM reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from speculators.formats.config import PublishedConfig


class RedrafterConfig(PublishedConfig):
    """The published keys.

    Attributes:
        vocab_size: tokens of the target, V.
        hidden_size: width of the target's hidden states, H, and of the recurrent state.
        exit_dim: width of the residual blocks; 2H needs no input projection.
        num_draft_layers: residual blocks before the output matrix.
        rnn: the state is a recurrence of the drafted tokens' embeddings; without it, their plain sum.
    """

    model_type: Literal["recurrent_drafting_drafter"] = "recurrent_drafting_drafter"
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    exit_dim: PositiveInt
    num_draft_layers: PositiveInt
    rnn: bool = False

    @property
    def has_input_projection(self) -> bool:
        """Whether state and context are projected before the first block."""
        return self.exit_dim != 2 * self.hidden_size
