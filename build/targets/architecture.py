"""What a Llama-family model computes, read from its Hugging Face `config.json`.

The families (`build.targets.families`) differ from Llama in a few places only: biases, normalised queries and keys,
norms behind attention and MLP, the activation, scalar multipliers, sliding windows, layers without rotary embedding or
with another one. `Architecture` names each of those places once, so that a graph builder needs no knowledge of
families. Whatever it cannot express is refused by name, never approximated.

One layer, with `norm` = RMSNorm, `post` = RMSNorm where `norms` names one, and `m` = `residual_multiplier`::

    h = h + m * post(attention(norm(h)))    q, k optionally normalised per head, then rotated; softmax scale
    h = h + m * post(down(activation(gate(norm(h))) * up(norm(h))))                  `attention_multiplier`

Input `embedding_multiplier * embed(token)`; output `lm_head(norm(h)) / logits_divisor`.

Example::

    architecture = Architecture.from_directory(Path("models/smollm2-135m"))
    architecture.num_layers, architecture.head_dim      # (30, 64)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.families import BY_MODEL_TYPE, refuse_family
from build.targets.families.record import Activation, Family, LayerNorms, count, positive
from build.targets.rope import Rope
from deployments.files.reading import read_json_object
from engine.serving.end_tokens import end_token_ids


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
    activation: str = "silu"
    """Of the MLP: "silu" or "gelu_tanh"."""
    norms: LayerNorms = field(default_factory=LayerNorms)
    norm_offset: float = 0.0
    """What every norm adds to its weight."""
    rope: Rope = field(default_factory=Rope)
    sliding_rope: Rope | None = None
    """Rotary embedding of `sliding_layers` where it is another; see `rope_of`."""
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
        settings = family.settings(config)
        sizes = _sizes(settings)
        rope, sliding_rope = family.ropes(settings)
        multipliers = family.multipliers(settings)
        attention_bias = family.has_bias("attention_bias", settings)
        sliding_layers = family.sliding_layers(settings, sizes["num_layers"])
        window = _window(settings, sliding_layers)
        return cls(
            family=family.model_type,
            **sizes,
            rms_norm_eps=positive(settings, "rms_norm_eps"),
            activation=_activation(family.activation, settings),
            norms=family.norms,
            norm_offset=family.norm_offset,
            rope=rope,
            sliding_rope=sliding_rope,
            no_rope_layers=family.unrotated_layers(settings, sizes["num_layers"]),
            qkv_bias=attention_bias or family.qkv_bias,
            o_bias=attention_bias,
            mlp_bias=family.has_bias("mlp_bias", settings),
            qk_norm=family.qk_norm,
            tie_word_embeddings=bool(settings["tie_word_embeddings"]),
            sliding_window=window,
            sliding_layers=() if window is None and sliding_rope is None else sliding_layers,
            embedding_multiplier=multipliers.embedding,
            attention_multiplier=multipliers.attention,
            residual_multiplier=multipliers.residual,
            logits_divisor=multipliers.logits_divisor,
            bos_token_id=settings["bos_token_id"],
            eos_token_ids=_token_ids(settings["eos_token_id"]),
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

    def rope_of(self, layer: int) -> Rope | None:
        """Rotary embedding of a layer's queries and keys; None where they are not rotated."""
        if layer in self.no_rope_layers:
            return None
        return self.sliding_rope if self.sliding_rope and layer in self.sliding_layers else self.rope

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
        shapes: dict[str, tuple[int, ...]] = {f"{self.norms.before_attention}.weight": (hidden,)}
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)
        if self.qk_norm:
            shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (self.head_dim,)
        shapes |= {f"{name}.weight": (hidden,) for name in self.norms.behind_attention}
        return shapes


def _family(config: Mapping[str, Any]) -> Family:
    family = config.get("model_type")
    if family is None:
        raise TargetError(f"config.json: model_type is missing; it must be one of {', '.join(BY_MODEL_TYPE)}")
    if family not in BY_MODEL_TYPE:
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
    return BY_MODEL_TYPE[family]


def _sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    hidden, heads = count(fields, "hidden_size"), count(fields, "num_attention_heads")
    kv_heads = heads if fields["num_key_value_heads"] is None else count(fields, "num_key_value_heads")
    if heads % kv_heads:
        raise TargetError(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if fields["head_dim"] is None and hidden % heads:
        raise TargetError(
            f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}; set head_dim"
        )
    head_dim = hidden // heads if fields["head_dim"] is None else count(fields, "head_dim")
    if head_dim % 2:
        raise TargetError(f"config.json: head_dim is {head_dim}; rotary embedding needs an even number")
    return {
        "vocab_size": count(fields, "vocab_size"),
        "hidden_size": hidden,
        "num_layers": count(fields, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": count(fields, "intermediate_size"),
        "max_position_embeddings": count(fields, "max_position_embeddings"),
    }


def _activation(activation: Activation, settings: Mapping[str, Any]) -> str:
    found = settings[activation.key]
    if found not in activation.spellings:
        raise UnsupportedModelError(
            f"config.json: {activation.key} {found!r} is not supported; it must be {activation.spellings[0]!r}"
        )
    return activation.name


def _window(settings: Mapping[str, Any], sliding_layers: tuple[int, ...]) -> int | None:
    """The sliding window; None where it is absent, unused, or as long as the context."""
    if settings.get("sliding_window") is None or not sliding_layers:
        return None
    window = count(settings, "sliding_window")
    return window if window < count(settings, "max_position_embeddings") else None


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
