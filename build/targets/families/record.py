"""What is said of a model family, and how what it says is read from `config.json`.

All families are the Llama decoder with parts exchanged; each part is a field of `Family`, whose default is Llama's.
Where a family has a rule of its own (which layers slide, what scales what) the field is a function of the merged
settings: those of the file over the family's defaults, over `COMMON_DEFAULTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.rope import Rope, parse_scaling

if TYPE_CHECKING:
    from build.targets.gguf_file import GgufFile

Settings = Mapping[str, Any]
LayerRule = Callable[[Settings, int], tuple[int, ...]]
"""Settings and number of layers -> indices of the layers that something applies to."""

# Values that Transformers 5.23 assumes where a family's config.json is silent.
COMMON_DEFAULTS: Settings = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10_000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """Names of a layer's norms: on what goes into attention and MLP, and on what comes out of them, if anywhere."""

    before_attention: str = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str | None = None

    @property
    def behind_attention(self) -> tuple[str, ...]:
        """Those that follow attention, in order."""
        names = (self.after_attention, self.before_mlp, self.after_mlp)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Factors on embedding, residual branches and softmax (None: 1 / sqrt(head_dim)), and the logits' divisor."""

    embedding: float = 1.0
    attention: float | None = None
    residual: float = 1.0
    logits_divisor: float = 1.0


@dataclass(frozen=True, slots=True)
class Activation:
    """Of the gated MLP.

    Attributes:
        name: "silu", or "gelu_tanh", which is GELU by its tanh approximation.
        key: where config.json names it.
        spellings: what it is called there, first the usual one.
    """

    name: str = "silu"
    key: str = "hidden_act"
    spellings: tuple[str, ...] = ("silu", "swish")


def _nothing_more(file: GgufFile, config: Settings) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class GgufFormat:
    """How llama.cpp stores a family.

    Attributes:
        architecture: `general.architecture`.
        norm_names: layer norms that are not called `attn_norm` and `ffn_norm`, by their Hugging Face names.
        reordered: whether rows of query and key projections are reordered for llama.cpp's adjacent-pair rotary kernel.
        has_rope_factors: whether a file may have the tensor of Llama 3.1's rule; a stray one in other families.
        settings: what only this family has in `config.json`, of a file and of what was read so far.
        neutral: keys that make another model of the family, and what they must say here.
    """

    architecture: str
    norm_names: Mapping[str, str] = field(default_factory=dict)
    reordered: bool = False
    has_rope_factors: bool = False
    settings: Callable[[GgufFile, Settings], dict[str, Any]] = _nothing_more
    neutral: Settings = field(default_factory=dict)


def no_layers(settings: Settings, num_layers: int) -> tuple[int, ...]:
    """The layer rule of families without."""
    return ()


def every_layer(settings: Settings, num_layers: int) -> tuple[int, ...]:
    """The layer rule that makes no difference between layers."""
    return tuple(range(num_layers))


def same_rope(settings: Settings) -> tuple[Rope, Rope | None]:
    """One rotary embedding for all layers that have any."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    # Transformers accepts `partial_rotary_factor` beside the rope settings as well as in them.
    outer = {key: settings[key] for key in ("partial_rotary_factor",) if settings.get(key) is not None}
    return read_rope({**outer, **rope}, settings["rope_theta"], settings), None


def no_multipliers(settings: Settings) -> Multipliers:
    """Of families without."""
    return Multipliers()


@dataclass(frozen=True, slots=True)
class Family:
    """One model family.

    Attributes:
        model_type: in config.json.
        described: in messages that list what is supported.
        class_name: of Transformers, for `architectures` of config.json.
        gguf: None: llama.cpp stores it as another family.
        defaults: what Transformers assumes where config.json is silent, if not `COMMON_DEFAULTS`.
        activation: of the MLP.
        bias_keys: settings that give all attention projections, or all of the MLP's, a bias.
        qkv_bias: whether query, key and value projections have one whatever the file says.
        qk_norm: whether queries and keys are normalised head by head.
        norms: of a layer.
        norm_offset: what norms add to their weights.
        sliding_layers: where a sliding window applies.
        unrotated_layers: without rotary embedding.
        ropes: the rotary embedding, and that of sliding layers where it is another.
        multipliers: constant factors.
        neutral: settings that make another model of the family, and the values at which they do not.
    """

    model_type: str
    described: str
    class_name: str
    gguf: GgufFormat | None
    defaults: Settings = field(default_factory=dict)
    activation: Activation = Activation()
    bias_keys: frozenset[str] = frozenset()
    qkv_bias: bool = False
    qk_norm: bool = False
    norms: LayerNorms = LayerNorms()
    norm_offset: float = 0.0
    sliding_layers: LayerRule = no_layers
    unrotated_layers: LayerRule = no_layers
    ropes: Callable[[Settings], tuple[Rope, Rope | None]] = same_rope
    multipliers: Callable[[Settings], Multipliers] = no_multipliers
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def settings(self, config: Settings) -> dict[str, Any]:
        """Of a `config.json`, defaults filled in.

        Raises:
            UnsupportedModelError: one of them makes another model of the family.
        """
        merged = {**COMMON_DEFAULTS, **self.defaults, **config}
        for key, values in self.neutral.items():
            if merged.get(key) not in values:
                raise UnsupportedModelError(
                    f"config.json: {key} {merged[key]!r} is not supported; it must be {values[0]!r}"
                )
        return merged

    def has_bias(self, key: str, settings: Settings) -> bool:
        """Whether `attention_bias` or `mlp_bias` applies to the family and is set."""
        return key in self.bias_keys and bool(settings[key])


def read_rope(rope: Settings, theta: Any, settings: Settings) -> Rope:
    """A rotary embedding as `rope_scaling` or `rope_parameters` describes it; `theta` where it does not say.

    Raises:
        UnsupportedModelError, TargetError: as `parse_scaling`, or theta is no positive number.
    """
    found = positive({"rope_theta": rope.get("rope_theta") or theta}, "rope_theta")
    return Rope(found, parse_scaling(rope, count(settings, "max_position_embeddings")))


def listed_sliding_layers(settings: Settings, num_layers: int) -> tuple[int, ...] | None:
    """The layers that `layer_types` names as sliding; None without such a list.

    Raises:
        TargetError: it is too short. UnsupportedModelError: it has a kind of attention that is not known.
    """
    kinds: Sequence[str] | None = settings.get("layer_types")
    if not kinds:
        return None
    if len(kinds) < num_layers:
        raise TargetError(f"config.json: layer_types has {len(kinds)} entries for {num_layers} layers")
    for kind in kinds:
        if kind not in (_SLIDING, _FULL):
            raise UnsupportedModelError(
                f"config.json: layer type {kind!r} is not supported; it must be {_FULL!r} or {_SLIDING!r}"
            )
    return tuple(layer for layer in range(num_layers) if kinds[layer] == _SLIDING)


def count(settings: Settings, key: str) -> int:
    """A positive whole number.

    Raises:
        TargetError: it is something else.
    """
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TargetError(f"config.json: {key} is {value!r}; it must be a positive whole number")
    return value


def positive(settings: Settings, key: str, default: float | None = None) -> float:
    """A positive number.

    Raises:
        TargetError: it is something else.
    """
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise TargetError(f"config.json: {key} is {value!r}; it must be a positive number")
    return float(value)


def bias_settings(file: GgufFile) -> dict[str, Any]:
    """`attention_bias` and `mlp_bias` of a GGUF file: whether it has such tensors."""
    names = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
    return {key: name in file.tensor_names for key, name in names.items()}
