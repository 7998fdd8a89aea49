"""`config.json` beside Medusa heads, as the Medusa repository writes it."""

from __future__ import annotations

from pydantic import PositiveInt

from speculators.formats.config import PublishedConfig


class MedusaConfig(PublishedConfig):
    """The published keys; width and vocabulary are not among them, they follow from the tensors.

    Attributes:
        medusa_num_heads: heads; head k predicts the token k + 2 positions after the hidden state's own.
        medusa_num_layers: residual blocks in each head.
        base_model_name_or_path: the target, as its trainer named it.
    """

    medusa_num_heads: PositiveInt
    medusa_num_layers: PositiveInt = 1
    base_model_name_or_path: str | None = None
