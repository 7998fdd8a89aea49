"""What a Llama-family model computes, read from its Hugging Face `config.json`.

The families differ from Llama in a few places only: biases (Qwen2), normalised queries and keys (Qwen3),
four scalar multipliers (Granite), layers without rotary embedding (SmolLM3), sliding windows (Mistral, Qwen).
`Architecture` names each of those places once, so that a graph builder needs no knowledge of families.
Whatever it cannot express is refused by name, never approximated.

One layer, with `norm` = RMSNorm and `m` = `residual_multiplier`::

    h = h + m * attention(norm(h))        q, k optionally normalised per head, then rotated; softmax scale
    h = h + m * down(silu(gate(norm(h))) * up(norm(h)))                            `attention_multiplier`

Input `embedding_multiplier * embed(token)`; output `lm_head(norm(h)) / logits_divisor`.

Example::

    architecture = Architecture.from_directory(Path("models/smollm2-135m"))
    architecture.num_layers, architecture.head_dim      # (30, 64)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.rope import RopeScaling, inverse_frequencies, parse_scaling
from deployments.files.reading import read_json_object
from engine.serving.end_tokens import end_token_ids

# Values that Transformers 5.23 assumes where a family's config.json is silent.
_COMMON_DEFAULTS: dict[str, Any] = {
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
_QWEN_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "bos_token_id": None,
    "eos_token_id": None,
}
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": {**_QWEN_DEFAULTS, "head_dim": 128},
    "granite": {},
    "smollm3": {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
    },
}
SUPPORTED_FAMILIES = tuple(_FAMILY_DEFAULTS)
SUPPORTED_MODELS = (
    "Llama (also SmolLM and SmolLM2; model type llama), Mistral (mistral), Qwen2 and Qwen2.5 (qwen2), "
    "Qwen3 (qwen3), Granite 3 dense (granite), SmolLM3 (smollm3)"
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything a forward pass needs besides the weights."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    no_rope_layers: tuple[int, ...] = ()
    """Indices of the layers that do not rotate queries and keys."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether queries and keys are RMS-normalised per head (weights [head_dim]) before rotation."""
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    """In `sliding_layers`, position p sees keys p - window + 1 .. p. None where that never hides a key."""
    sliding_layers: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    attention_multiplier: float | None = None
    """Softmax scale; None stands for 1 / sqrt(head_dim), see `softmax_scale`."""
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Read a parsed `config.json`, in the spelling of Transformers 4 or 5.

        Raises:
            UnsupportedModelError: another family, activation, rope rule or task; the message says which are
            supported. TargetError: a field is missing or impossible.
        """
        family = _family(config)
        fields = {**_COMMON_DEFAULTS, **_FAMILY_DEFAULTS[family], **config}
        sizes = _sizes(fields)
        rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
        attention_bias, mlp_bias = _biases(family, fields)
        window, sliding_layers = _sliding(family, fields, sizes)
        granite = family == "granite"
        return cls(
            family=family,
            **sizes,
            rms_norm_eps=_positive(fields, "rms_norm_eps"),
            hidden_act=_activation(fields),
            rope_theta=_positive(
                {"rope_theta": rope.get("rope_theta") or fields["rope_theta"]}, "rope_theta"
            ),
            rope_scaling=parse_scaling(_with_rotary_factor(rope, fields), sizes["max_position_embeddings"]),
            no_rope_layers=_no_rope_layers(family, fields, sizes["num_layers"]),
            qkv_bias=attention_bias or family == "qwen2",
            o_bias=attention_bias,
            mlp_bias=mlp_bias,
            qk_norm=family == "qwen3",
            tie_word_embeddings=bool(fields["tie_word_embeddings"]),
            sliding_window=window,
            sliding_layers=sliding_layers,
            embedding_multiplier=_positive(fields, "embedding_multiplier", 1.0) if granite else 1.0,
            attention_multiplier=_positive(fields, "attention_multiplier", 1.0) if granite else None,
            residual_multiplier=_positive(fields, "residual_multiplier", 1.0) if granite else 1.0,
            logits_divisor=_positive(fields, "logits_scaling", 1.0) if granite else 1.0,
            bos_token_id=fields["bos_token_id"],
            eos_token_ids=_token_ids(fields["eos_token_id"]),
        )

    @classmethod
    def from_directory(cls, directory: Path) -> "Architecture":
        """Read `config.json` of a model in Hugging Face layout.

        End tokens are those of `engine.serving.end_tokens`; one outside the vocabulary is never drawn and left out.

        Raises:
            TargetError: as `from_config`, or a file is missing or is not JSON.
        """
        config = read_json_object(
            directory / "config.json", TargetError, "a model in Hugging Face layout has it"
        )
        generation_path = directory / "generation_config.json"
        generation = read_json_object(generation_path, TargetError) if generation_path.is_file() else {}
        found = cls.from_config(config)
        try:
            ends = end_token_ids(directory, config, generation, default=found.eos_token_ids)
        except ValueError as error:
            raise TargetError(f"{directory}: {error}") from error
        return replace(found, eos_token_ids=tuple(token for token in ends if token < found.vocab_size))

    @property
    def softmax_scale(self) -> float:
        """Factor on query-key products before the softmax."""
        return self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    @property
    def attention_scaling(self) -> float:
        """Factor on both cos and sin of the rotary embedding (YaRN's temperature; 1 otherwise)."""
        return 1.0 if self.rope_scaling is None else self.rope_scaling.attention_scaling

    def inverse_frequencies(self) -> NDArray[np.float64]:
        """Radians per position of the rotated pairs (i, i + head_dim / 2): [head_dim / 2]."""
        return inverse_frequencies(self.rope_theta, self.head_dim, self.rope_scaling)

    @property
    def num_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the checkpoint by Hugging Face name; linear weights are [out, in]."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        for layer in range(self.num_layers):
            for name, shape in self._layer_shapes().items():
                shapes[f"model.layers.{layer}.{name}"] = shape
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        linears = {
            "self_attn.q_proj": (query, hidden, self.qkv_bias),
            "self_attn.k_proj": (key_value, hidden, self.qkv_bias),
            "self_attn.v_proj": (key_value, hidden, self.qkv_bias),
            "self_attn.o_proj": (hidden, query, self.o_bias),
            "mlp.gate_proj": (inner, hidden, self.mlp_bias),
            "mlp.up_proj": (inner, hidden, self.mlp_bias),
            "mlp.down_proj": (hidden, inner, self.mlp_bias),
        }
        shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)
        if self.qk_norm:
            shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (self.head_dim,)
        shapes["post_attention_layernorm.weight"] = (hidden,)
        return shapes


def refuse_family(name: str, where: str) -> UnsupportedModelError:
    """The error for a model type or GGUF architecture that is not supported."""
    return UnsupportedModelError(
        f"{where}: model type {name!r} is not supported. Supported: {SUPPORTED_MODELS}"
    )


def _family(config: Mapping[str, Any]) -> str:
    family = config.get("model_type")
    if family is None:
        raise TargetError(
            f"config.json: model_type is missing; it must be one of {', '.join(SUPPORTED_FAMILIES)}"
        )
    if family not in _FAMILY_DEFAULTS:
        raise refuse_family(str(family), "config.json")
    classes = config.get("architectures") or []
    if classes and not any(str(name).endswith("ForCausalLM") for name in classes):
        raise UnsupportedModelError(
            f"config.json: architectures is {', '.join(map(str, classes))}; a target must be a causal "
            "language model (a class named ...ForCausalLM)"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unnamed")
        raise UnsupportedModelError(
            f"config.json: the weights are quantised ({method}); take the model's 16-bit or 32-bit "
            "checkpoint, the engine quantises it itself"
        )
    return str(family)


def _sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    hidden, heads = _count(fields, "hidden_size"), _count(fields, "num_attention_heads")
    kv_heads = heads if fields["num_key_value_heads"] is None else _count(fields, "num_key_value_heads")
    if heads % kv_heads:
        raise TargetError(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if fields["head_dim"] is None and hidden % heads:
        raise TargetError(
            f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}; set head_dim"
        )
    head_dim = hidden // heads if fields["head_dim"] is None else _count(fields, "head_dim")
    if head_dim % 2:
        raise TargetError(f"config.json: head_dim is {head_dim}; rotary embedding needs an even number")
    return {
        "vocab_size": _count(fields, "vocab_size"),
        "hidden_size": hidden,
        "num_layers": _count(fields, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": _count(fields, "intermediate_size"),
        "max_position_embeddings": _count(fields, "max_position_embeddings"),
    }


def _count(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TargetError(f"config.json: {key} is {value!r}; it must be a positive whole number")
    return value


def _positive(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise TargetError(f"config.json: {key} is {value!r}; it must be a positive number")
    return float(value)


def _activation(fields: Mapping[str, Any]) -> str:
    name = fields["hidden_act"]
    if name not in ("silu", "swish"):
        raise UnsupportedModelError(f"config.json: hidden_act {name!r} is not supported; it must be 'silu'")
    return "silu"


def _with_rotary_factor(rope: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers accepts `partial_rotary_factor` beside the rope settings as well as in them."""
    outer = {key: fields[key] for key in ("partial_rotary_factor",) if fields.get(key) is not None}
    return {**outer, **rope}


def _biases(family: str, fields: Mapping[str, Any]) -> tuple[bool, bool]:
    """(all attention projections, all MLP projections) carry a bias by configuration."""
    attention = family in ("llama", "qwen3", "granite", "smollm3") and bool(fields["attention_bias"])
    mlp = family in ("llama", "granite", "smollm3") and bool(fields["mlp_bias"])
    return attention, mlp


def _no_rope_layers(family: str, fields: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    if family != "smollm3":
        return ()
    # In the file 1 means "rotates", whatever the name of the list suggests.
    rotates = fields.get("no_rope_layers")
    if rotates is None:
        interval = _count(fields, "no_rope_layer_interval")
        return tuple(range(interval - 1, num_layers, interval))
    if len(rotates) < num_layers:
        raise TargetError(f"config.json: no_rope_layers has {len(rotates)} entries for {num_layers} layers")
    return tuple(layer for layer in range(num_layers) if not rotates[layer])


def _sliding(
    family: str, fields: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[int | None, tuple[int, ...]]:
    """(window, layers that use it); (None, ()) where it is absent, unused, or as long as the context."""
    window = fields.get("sliding_window")
    layers = _sliding_layers(family, fields, sizes["num_layers"])
    if window is None or not layers or _count(fields, "sliding_window") >= sizes["max_position_embeddings"]:
        return None, ()
    return int(window), layers


def _sliding_layers(family: str, fields: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    everything = range(num_layers)
    if family == "mistral":
        return tuple(everything)
    if not fields.get("use_sliding_window"):
        return ()
    if fields.get("layer_types"):
        return tuple(layer for layer in everything if fields["layer_types"][layer] == "sliding_attention")
    if family == "smollm3":
        return _no_rope_layers(family, fields, num_layers)
    return tuple(range(min(_count(fields, "max_window_layers"), num_layers), num_layers))


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
