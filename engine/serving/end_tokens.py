"""The tokens that end a model's output, where its files say so.

Transformers' `generate` stops at `eos_token_id` of `generation_config.json`, and without it at that of `config.json`.
Both may be null, or older than the tokenizer that a fine-tuned model was given; so servers (vLLM, SGLang, TensorRT-LLM)
stop at the tokenizer's own `eos_token`, too. Here it is all of them, the model's before the tokenizer's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.serving.tokenizer_files import content_of, listed_tokens, read_tokenizer_config, vocabulary


def end_token_ids(
    directory: Path, config: Mapping[str, Any], generation: Mapping[str, Any], default: Sequence[int] = ()
) -> tuple[int, ...]:
    """End tokens of a model, the first of them the model's main one.

    Args:
        directory: of the tokenizer's files.
        config: `config.json`.
        generation: `generation_config.json`; empty where there is none.
        default: what the model's family assumes where neither has the key.

    Raises:
        ValueError: a file is damaged, or `eos_token_id` holds something else than token ids.
    """
    named = _ids(generation.get("eos_token_id"), "generation_config.json")
    if not named:
        named = _ids(config["eos_token_id"], "config.json") if "eos_token_id" in config else tuple(default)
    settings = read_tokenizer_config(directory)
    token = content_of(settings.get("eos_token"))
    known = {**listed_tokens(settings), **vocabulary(directory / "tokenizer.json")} if token else {}
    own = known.get(token or "")
    return tuple(dict.fromkeys((*named, *(() if own is None else (own,)))))


def _ids(value: Any, where: str) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in listed):
        raise ValueError(f"{where}: eos_token_id is {value!r}; it must be a token id, or a list of them")
    return tuple(item for item in listed if item >= 0)
