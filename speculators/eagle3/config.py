"""`config.json` of an EAGLE-3 drafter, as its writers write it.

The EAGLE repository, SpecForge and ModelOpt write a flat Llama config, the speculators library nests it in
`transformer_layer_config`. They count the target's layers that are read in two ways:

| key | writers | readers | a number is |
|---|---|---|---|
| `eagle_aux_hidden_state_layer_ids` | speculators | speculators, vLLM, llama.cpp | the layer that the state enters |
| `eagle_config.eagle_aux_hidden_state_layer_ids` | SpecForge, ModelOpt | SGLang, ModelOpt | the layer that it leaves |
| `aux_hidden_states_layer_ids` | AngelSlim | AngelSlim | the layer that it leaves |

vLLM reads the second as the first where the first is missing. So both are written, and mean the same to every reader;
of what is read, all that are there must agree.

Whose layers `num_hidden_layers` counts, and whose class `architectures` names, differs from file to file; what is
stored decides (`speculators.eagle3.checkpoint`). A key that changes the computation is honoured or refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import PositiveInt, model_validator

from speculators.eagle.config import LlamaDrafterConfig

DEFAULT_FEATURES = 3

_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
_ANGELSLIM_LAYER_IDS = "aux_hidden_states_layer_ids"
_NEWER = frozenset({"norm_before_fc", "fc_norm", "norm_output", "embed_requires_grad"})
# Keys of the speculators library that say for whom its file is; the flat config that other engines read has none.
_SPECULATORS_KEYS = ("speculators_config", "speculators_model_type", "speculators_version", "auto_map")
# What a key must say, where it is there, for the drafter to be the one that is computed here.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "is_causal": (True,),
    "logit_scale": (1, 1.0),
    "kv_lora_rank": (),
    "quantization_config": (),
}
_REQUIRED_NESTED: Mapping[str, tuple[Any, ...]] = {
    "use_aux_hidden_state": (True,),
    "use_input_layernorm_in_first_layer": (True,),
    "use_last_layernorm": (True,),
    "use_mtp_layernorm": (False,),
    "eh_proj_before_attn": (False,),
    "parallel_draft_step": (1,),
}

AnyEagle3 = TypeVar("AnyEagle3", bound="Eagle3Config")
"""The config of EAGLE-3, or of a drafter that is built on it."""

MASK_KEYS = ("mask_token_id", "pard_token", "ptd_token_id")
"""Keys that name the token of what is to be drafted, in configs of drafters that draft in parallel (P-EAGLE)."""


class Eagle3Config(LlamaDrafterConfig):
    """EAGLE-3.

    Attributes:
        library_name: what the speculators library calls such a drafter.
        in_parallel: whether a config names a mask token.
        num_hidden_layers: 1 once the checkpoint is loaded.
        draft_vocab_size: tokens that can be drafted, W; unset means all V of the target.
        target_hidden_size: width of the target where it is not that of the drafter.
        bias: whether `fc` has a bias.
        attention_bias: biases of the attention's projections; released P-EAGLE drafters have them, EAGLE-3 ones do not.
        norm_before_residual: the residual starts after `hidden_norm` instead of before it (speculators library).
        norm_before_fc: a norm over all features together, before `fc`.
        fc_norm: a norm for each feature, before `fc`.
        norm_output: the normed output is fed back, instead of the one before the norm.
        embed_requires_grad: the token embedding was trained, so it is not the target's.
        eagle_config: what ModelOpt and SpecForge write about the target layers that are read.
        eagle_aux_hidden_state_layer_ids: those layers, as the speculators library counts them.
        aux_hidden_states_layer_ids: those layers, as AngelSlim counts them.
    """

    library_name: ClassVar[str] = "eagle3"
    in_parallel: ClassVar[bool] = False

    num_hidden_layers: PositiveInt = 1
    draft_vocab_size: PositiveInt | None = None
    target_hidden_size: PositiveInt | None = None
    bias: bool = False
    attention_bias: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    embed_requires_grad: bool = False
    eagle_config: dict[str, Any] | None = None
    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    aux_hidden_states_layer_ids: list[int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _published(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        content = {key: value for key, value in content.items() if value is not None}
        content = _flat(content, cls.library_name)
        nested = content.get("eagle_config") or {}
        if not isinstance(nested, dict):
            return content
        layers = nested.get(_LAYER_IDS) or []
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            raise ValueError(f"eagle_config.{_LAYER_IDS} = {layers!r}; it must be a list of layers' numbers")
        _check_required("", content, _REQUIRED)
        if not cls.in_parallel:
            _check_required("", content, {"attention_bias": (False,)})
        masks = [key for key in MASK_KEYS if key in content]
        if masks and not cls.in_parallel:
            raise ValueError(
                f"{masks[0]} = {content[masks[0]]!r} makes it a drafter that drafts in parallel; method: peagle "
                "reads it"
            )
        _check_required("eagle_config.", nested, _REQUIRED_NESTED)
        if "norm_before_fc" in nested:
            content["norm_before_fc"] = nested["norm_before_fc"]
        if nested.get("return_hidden_post_norm"):  # TensorRT-LLM's name
            content["norm_output"] = True
        if content.get("use_aux_norm"):  # SGLang's older name
            content["fc_norm"] = True
        return content

    @model_validator(mode="after")
    def _consistent_features(self) -> Eagle3Config:
        if self.output_size > self.vocab_size:
            raise ValueError(
                f"draft_vocab_size = {self.draft_vocab_size} is above vocab_size = {self.vocab_size}"
            )
        named = self._named_layers()
        if len({tuple(layers) for layers in named.values()}) > 1:
            told = ", ".join(f"{key} the outputs of {layers}" for key, layers in named.items())
            raise ValueError(
                f"the target's layers that are read are named differently: {told} (at the top level a number is the "
                "layer that a state enters, in eagle_config the one that it leaves)"
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
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed head by head, as in Qwen3."""
        return self.model_type == "qwen3"

    @property
    def feature_width(self) -> int:
        """Width of one of the target's hidden states."""
        return self.target_hidden_size or self.hidden_size

    @property
    def target_layers(self) -> list[int] | None:
        """Target layers whose outputs are read, where the config says so."""
        return next(iter(self._named_layers().values()), None)

    @property
    def num_features(self) -> int:
        """Target layers that are read."""
        return len(self.target_layers or range(DEFAULT_FEATURES))

    def reading(self: AnyEagle3, layers: list[int]) -> AnyEagle3:
        """A copy that reads the outputs of these target layers, told so that every reader takes it so."""
        content = {key: value for key, value in self.content().items() if key != _ANGELSLIM_LAYER_IDS}
        nested = {**(self.eagle_config or {}), _LAYER_IDS: layers}
        entered = [layer + 1 for layer in layers]
        return type(self).parse({**content, _LAYER_IDS: entered, "eagle_config": nested}, "config")

    def content(self) -> dict[str, Any]:
        """The JSON object; keys of newer drafters only where they say something (SpecForge reads `norm_output: false`
        as no norm at all)."""
        content = super().content()
        usual = type(self).model_fields
        return {
            key: value for key, value in content.items() if key not in _NEWER or value != usual[key].default
        }

    def _named_layers(self) -> dict[str, list[int]]:
        """Target layers whose outputs are read, by the key that names them."""
        entered = self.eagle_aux_hidden_state_layer_ids
        found = {
            _LAYER_IDS: [layer - 1 for layer in entered or ()],
            f"eagle_config.{_LAYER_IDS}": (self.eagle_config or {}).get(_LAYER_IDS),
            _ANGELSLIM_LAYER_IDS: self.aux_hidden_states_layer_ids,
        }
        return {key: layers for key, layers in found.items() if layers}


def _flat(content: dict[str, Any], library_name: str) -> dict[str, Any]:
    """The speculators library nests the keys of the layer in `transformer_layer_config`."""
    kind = content.get("speculators_model_type", library_name)
    if kind != library_name:
        raise ValueError(f"speculators_model_type is {kind!r}; it must be {library_name!r}")
    if "transformer_layer_config" not in content:
        return content
    outer = {key: value for key, value in content.items() if key not in _SPECULATORS_KEYS}
    layer = outer.pop("transformer_layer_config")
    if not isinstance(layer, dict):
        raise ValueError(f"transformer_layer_config = {layer!r}; it must be an object")
    layer = {key: value for key, value in layer.items() if value is not None}
    return {
        **layer,
        **outer,
        "architectures": ["LlamaForCausalLM"],
        "model_type": layer.get("model_type", "llama"),
    }


def _check_required(prefix: str, content: Mapping[str, Any], required: Mapping[str, tuple[Any, ...]]) -> None:
    for key, values in required.items():
        if content.get(key) is not None and content[key] not in values:
            wanted = f"it must be {values[0]!r}" if values else "it must be absent"
            raise ValueError(f"{prefix}{key} = {content[key]!r} is not supported; {wanted}")
    if prefix:
        return
    window, positions = content.get("sliding_window"), content.get("max_position_embeddings", 2048)
    kinds = content.get("layer_types")
    slides = content.get("use_sliding_window") or (isinstance(kinds, list) and "sliding_attention" in kinds)
    if slides and isinstance(window, int) and isinstance(positions, int) and window < positions:
        raise ValueError(f"a sliding window of {window} is not supported; the drafter must see all positions")
