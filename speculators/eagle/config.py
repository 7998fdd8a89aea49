"""`config.json` of an EAGLE drafter: a Llama config whose one or more layers are the drafter's (SafeAILab/EAGLE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from speculators.formats.config import PublishedConfig

ROPE_SETTINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Rotary scalings that are computed here, and the numbers that each needs."""


class LlamaDrafterConfig(PublishedConfig):
    """What EAGLE-1 and EAGLE-3 drafters share.

    Attributes:
        vocab_size: tokens of the target, V.
        hidden_size: width H.
        intermediate_size: width of the MLP.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; unset means as many as query heads.
        head_dim: width of a head; unset means H / heads.
        rope_theta, rope_scaling: rotary embedding; `rope_scaling` is unset, `linear` or `llama3`.
    """

    architectures: list[str] = Field(default=["LlamaForCausalLM"])
    model_type: str = "llama"
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: PositiveInt = 2048
    tie_word_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_transformers_reads_it(cls, content: Any) -> Any:
        """A key that is null is absent. Transformers 5 writes `rope_parameters`, which earlier readers, TensorRT-LLM
        1.2.1 among them, ignore; a `rope_theta` in there, or in `rope_scaling`, goes before the one beside them."""
        if not isinstance(content, dict):
            return content
        content = {key: value for key, value in content.items() if value is not None}
        newer = content.pop("rope_parameters", None)
        rope = newer if newer is not None else content.get("rope_scaling")
        if isinstance(rope, dict):
            rope = {key: value for key, value in rope.items() if value is not None}
            content["rope_theta"] = rope.pop("rope_theta", content.get("rope_theta", 10000.0))
            content["rope_scaling"] = rope
            if rope.get("rope_type", rope.get("type", "default")) == "default" and not _unknown_rope(rope):
                del content["rope_scaling"]
        return content

    @model_validator(mode="after")
    def _consistent(self) -> LlamaDrafterConfig:
        if self.num_attention_heads % self.key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not divisible by num_key_value_heads = "
                f"{self.key_value_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not divisible by num_attention_heads = "
                f"{self.num_attention_heads}; head_dim must be given"
            )
        self._check_rope()
        return self

    def _check_rope(self) -> None:
        if self.rope_type not in ROPE_SETTINGS:
            known = ", ".join(ROPE_SETTINGS)
            raise ValueError(f"rope_scaling has type {self.rope_type!r}; it must be one of {known}")
        scaling = self.rope_scaling or {}
        if unknown := _unknown_rope(scaling):
            raise ValueError(f"rope_scaling has settings that are not supported: {', '.join(unknown)}")
        if (self.model_extra or {}).get("partial_rotary_factor", 1) != 1:
            raise ValueError("partial_rotary_factor is not supported; it must be 1")
        for key in ROPE_SETTINGS[self.rope_type]:
            if not isinstance(scaling.get(key), (int, float)) or scaling[key] <= 0:
                raise ValueError(
                    f"rope_scaling of type {self.rope_type} needs {key} above 0; it is {scaling.get(key)!r}"
                )

    @property
    def key_value_heads(self) -> int:
        """Key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope_type(self) -> str:
        """Kind of rotary scaling."""
        scaling = self.rope_scaling or {}
        return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _unknown_rope(scaling: Mapping[str, Any]) -> list[str]:
    """Settings of a rotary scaling that are none of its kind's."""
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    known = {"rope_type", "type", "factor", *ROPE_SETTINGS.get(kind, ())}
    whole = scaling.get("partial_rotary_factor") in (None, 1)
    return sorted(set(scaling) - known - ({"partial_rotary_factor"} if whole else set()))


class EagleConfig(LlamaDrafterConfig):
    """EAGLE-1.

    Attributes:
        num_hidden_layers: decoder layers of the drafter.
        bias: whether `fc` has a bias; EAGLE's loader assumes so where the key is missing.
        qkv_bias: whether the query, key and value projections have one (drafters of Qwen2).
    """

    num_hidden_layers: Annotated[int, Field(ge=1)] = 1
    bias: bool = True
    qkv_bias: bool = False
