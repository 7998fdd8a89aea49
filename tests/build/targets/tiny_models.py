"""Tiny random models of every family, as Hugging Face directories and as GGUF files, made without network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from build.targets.architecture import Architecture

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma3_text")
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "1 2", "Ċ Ċ", "Ã ©")
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"

_OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": None},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "tie_word_embeddings": True,
    },
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "tie_word_embeddings": True},
    "gemma3_text": {
        "num_hidden_layers": 3,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 9,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "tie_word_embeddings": True,
    },
}
# Families are spelled otherwise by llama.cpp, or lie in files of another.
_GGUF_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """A config.json of a model with a few thousand weights and the byte-level vocabulary below."""
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": len(byte_level_tokens()),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return {**config, **_OWN_SETTINGS[family], **changes}


def byte_level_tokens() -> list[str]:
    """Special tokens, the 256 byte characters, and one token a merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL_TOKENS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def random_weights(architecture: Architecture, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights under which every part of the model matters to the logits."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in architecture.parameter_shapes().items():
        values = random.standard_normal(shape, dtype=np.float32)
        weights[name] = 1.0 + 0.3 * values if "norm" in name else values / np.sqrt(shape[-1])
        if (
            "norm" in name and architecture.norm_offset
        ):  # to few digits, as files have them: sums with 1 are exact
            weights[name] = np.round(weights[name] - architecture.norm_offset, 3).astype(np.float16)
    return {name: values.astype(np.float32) for name, values in weights.items()}


def write_huggingface(
    directory: Path, config: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]
) -> Path:
    """A source directory with a single safetensors file and a tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(dict(weights), directory / "model.safetensors")
    write_tokenizer(directory)
    return directory


def write_sharded(directory: Path, config: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]) -> Path:
    """The same with weights in two shards and an index."""
    write_huggingface(directory, config, {})
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, members in shards.items():
        save_file({name: weights[name] for name in members}, directory / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_tokenizer(directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json with a chat template."""
    vocabulary = {token: index for index, token in enumerate(byte_level_tokens())}
    tokenizer = Tokenizer(
        BPE(vocabulary, [(left, right) for left, _, right in (merge.partition(" ") for merge in MERGES)])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": {"content": SPECIAL_TOKENS[1]}, "eos_token": SPECIAL_TOKENS[2]}
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}))


class GgufBuilder:
    """Writes a model as llama.cpp's converter does; anything can be changed or left out before `write`."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.architecture_name = _GGUF_ARCHITECTURES.get(config["model_type"], config["model_type"])
        self.architecture = Architecture.from_config(config)
        self.settings: dict[str, Any] = self._settings(config)
        self.metadata: dict[str, Any] = byte_level_metadata()
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self.types: dict[str, gguf.GGMLQuantizationType] = {}
        for name, values in weights.items():
            self.tensors[self._gguf_name(name)] = self._with_one(name, self._reordered(name, values))

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        architecture = self.architecture
        settings: dict[str, Any] = {
            "block_count": architecture.num_layers,
            "context_length": architecture.max_position_embeddings,
            "embedding_length": architecture.hidden_size,
            "feed_forward_length": architecture.intermediate_size,
            "attention.head_count": architecture.num_heads,
            "attention.head_count_kv": architecture.num_kv_heads,
            "attention.key_length": architecture.head_dim,
            "attention.value_length": architecture.head_dim,
            "attention.layer_norm_rms_epsilon": architecture.rms_norm_eps,
            "rope.freq_base": architecture.rope.theta,
            "rope.dimension_count": architecture.head_dim,
        }
        if self.architecture_name == "gemma3":
            del settings["rope.dimension_count"]
            settings["rope.freq_base_swa"] = config["rope_local_base_freq"]
            settings["rope.scaling.type"] = "linear"
            settings["rope.scaling.factor"] = config["rope_scaling"]["factor"]
            settings["attention.sliding_window"] = config["sliding_window"]
            settings["attention.sliding_window_pattern"] = config["sliding_window_pattern"]
        if architecture.family == "granite":
            settings["embedding_scale"] = architecture.embedding_multiplier
            settings["attention.scale"] = architecture.softmax_scale
            settings["residual_scale"] = architecture.residual_multiplier
            settings["logit_scale"] = architecture.logits_divisor
        return settings

    def _gguf_name(self, name: str) -> str:
        """What the `gguf` package, which is llama.cpp's own, calls a tensor of Transformers."""
        kinds = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(kinds[self.architecture_name], self.architecture.num_layers)
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        return found

    def _with_one(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """llama.cpp's converter stores 1 + weight for Gemma's norms."""
        return values + np.float32(1) if self.architecture_name == "gemma3" and "norm" in name else values

    def _reordered(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The row (half s, pair i) of a query or key head goes to 2i + s, in all families but Qwen and Gemma."""
        heads = {"q_proj": self.architecture.num_heads, "k_proj": self.architecture.num_kv_heads}
        module = name.split(".")[-2]
        if module not in heads or self.architecture_name.startswith(("qwen", "gemma")):
            return values
        half = self.architecture.head_dim // 2
        order = [row % 2 * half + row // 2 for row in range(2 * half)]
        split = values.reshape(heads[module], 2 * half, *values.shape[1:])
        return np.ascontiguousarray(split[:, order].reshape(values.shape))

    def store_as(self, kind: gguf.GGMLQuantizationType) -> "GgufBuilder":
        """Store the matrices in another type."""
        self.types = {name: kind for name, values in self.tensors.items() if values.ndim > 1}
        return self

    def write(self, path: Path) -> Path:
        """Write the file."""
        writer = gguf.GGUFWriter(path, self.architecture_name)
        for key, value in self.settings.items():
            _add(writer, f"{self.architecture_name}.{key}", value)
        for key, value in self.metadata.items():
            _add(writer, key, value)
        for name, values in self.tensors.items():
            kind = self.types.get(name)
            if kind is None:
                writer.add_tensor(name, values)
            else:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def byte_level_metadata() -> dict[str, Any]:
    """Tokenizer metadata of a byte-level BPE with SmolLM's splitting."""
    tokens = byte_level_tokens()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def tiny_gguf(
    path: Path, family: str = "llama", **changes: Any
) -> tuple[Path, dict[str, NDArray[np.float32]]]:
    """A GGUF file of a family in float32, and the weights in it by Hugging Face name."""
    config = tiny_config(family, **changes)
    weights = random_weights(Architecture.from_config(config))
    return GgufBuilder(config, weights).write(path), weights


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
