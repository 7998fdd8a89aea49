"""`config.json` of an MLP speculator, as IBM released them and vLLM reads them (`model_type: mlp_speculator`)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from speculators.formats.config import PublishedConfig

ARCHITECTURE = "MLPSpeculatorPreTrainedModel"


class MlpSpeculatorConfig(PublishedConfig):
    """The published keys.

    Attributes:
        vocab_size: tokens of the target, V.
        emb_dim: width of the target's hidden states, E.
        inner_dim: width of the stages, D; 0 means that of the target.
        n_predict: stages, which is the draft length.
        top_k_tokens_per_head: children of each node of the token tree, stage by stage.
        n_candidates: paths kept of that tree.
        tie_weights: all stages share embedding, head and norm, and all but the first share the projection.
        scale_input: the hidden state is normalised and divided by the square root of 2 first.
    """

    architectures: list[str] = Field(default=[ARCHITECTURE])
    model_type: Literal["mlp_speculator"] = "mlp_speculator"
    vocab_size: PositiveInt
    emb_dim: PositiveInt
    inner_dim: Annotated[int, Field(ge=0)] = 0
    n_predict: PositiveInt
    top_k_tokens_per_head: list[PositiveInt]
    n_candidates: PositiveInt = 5
    tie_weights: bool = False
    scale_input: bool = False

    @model_validator(mode="before")
    @classmethod
    def _older_spelling(cls, content: Any) -> Any:
        """fms-extras wrote `tie_wts` before vLLM settled on `tie_weights`."""
        if isinstance(content, dict) and "tie_wts" in content:
            content = dict(content)
            content.setdefault("tie_weights", content.pop("tie_wts"))
        return content

    @model_validator(mode="after")
    def _consistent(self) -> MlpSpeculatorConfig:
        if len(self.top_k_tokens_per_head) != self.n_predict:
            raise ValueError(
                f"top_k_tokens_per_head has {len(self.top_k_tokens_per_head)} entries for n_predict = "
                f"{self.n_predict} stages; it must have one for each"
            )
        if self.tie_weights and self.n_predict == 1:
            raise ValueError("tie_weights needs n_predict of at least 2; one stage has nothing to share")
        return self

    @property
    def width(self) -> int:
        """D, the width of the stages."""
        return self.inner_dim or self.emb_dim

    @property
    def state_weight(self) -> float:
        """Share of a stage's input that comes from the previous state: after all stages half of its energy is left."""
        return float(0.5 ** (0.5 / self.n_predict))

    @property
    def embedding_weight(self) -> float:
        """Factor of the token embedding; D/2 makes up for embeddings of variance 1/D and for the GELU."""
        return math.sqrt((1 - self.state_weight**2) * self.width / 2)
