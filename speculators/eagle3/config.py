"""`config.json` of an EAGLE-3 drafter, as the EAGLE repository, SpecForge and the speculators library write it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from speculators.eagle.config import LlamaDrafterConfig

DEFAULT_FEATURES = 3

# Keys of the speculators library that say for whom its file is; the flat config that other engines read has none.
_SPECULATORS_KEYS = ("speculators_config", "speculators_model_type", "speculators_version", "auto_map")


class Eagle3Config(LlamaDrafterConfig):
    """EAGLE-3.

    Attributes:
        num_hidden_layers: always 1.
        draft_vocab_size: tokens that can be drafted, W; unset means all V of the target.
        target_hidden_size: width of the target where it is not that of the drafter.
        bias: whether `fc` has a bias.
        attention_bias: not supported; no released drafter has it.
        norm_before_residual: the residual starts after `hidden_norm` instead of before it (speculators library).
        eagle_config: what ModelOpt and SpecForge write about the target layers that are read.
    """

    num_hidden_layers: Literal[1] = 1
    draft_vocab_size: PositiveInt | None = None
    target_hidden_size: PositiveInt | None = None
    bias: bool = False
    attention_bias: Literal[False] = False
    norm_before_residual: bool = False
    eagle_config: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _nested_layer(cls, content: Any) -> Any:
        """The speculators library nests the Llama keys in `transformer_layer_config`."""
        if not isinstance(content, dict) or "transformer_layer_config" not in content:
            return content
        outer = {key: value for key, value in content.items() if key not in _SPECULATORS_KEYS}
        layer = dict(outer.pop("transformer_layer_config"))
        return {**layer, **outer, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}

    @model_validator(mode="after")
    def _vocabulary(self) -> Eagle3Config:
        if self.output_size > self.vocab_size:
            raise ValueError(
                f"draft_vocab_size = {self.draft_vocab_size} is above vocab_size = {self.vocab_size}"
            )
        return self

    @property
    def output_size(self) -> int:
        """W, rows of the output matrix."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def has_vocabulary_map(self) -> bool:
        """Whether draft tokens have ids of their own."""
        return self.output_size != self.vocab_size

    @property
    def feature_width(self) -> int:
        """Width of one of the target's hidden states."""
        return self.target_hidden_size or self.hidden_size

    @property
    def target_layers(self) -> list[int] | None:
        """Target layers whose outputs are read, where the config says so."""
        layers = (self.eagle_config or {}).get("eagle_aux_hidden_state_layer_ids")
        layers = layers or (self.model_extra or {}).get("eagle_aux_hidden_state_layer_ids")
        return [int(layer) for layer in layers] if layers else None

    @property
    def num_features(self) -> int:
        """Target layers that are read."""
        return len(self.target_layers or range(DEFAULT_FEATURES))
