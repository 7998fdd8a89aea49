"""From a GGUF file to a model directory in Hugging Face layout."""

from pathlib import Path
from typing import Any

from build.targets.architecture import Architecture
from build.targets.download import Progress
from build.targets.errors import TargetError
from build.targets.files import require_space
from build.targets.gguf_file import GgufFile
from build.targets.gguf_model import huggingface_config, tensor_plans
from build.targets.gguf_tokenizer import TokenizerFiles, read_tokenizer
from build.targets.storage import write_safetensors
from build.targets.weights import SINGLE_FILE
from deployments.files.writing import write_json


def convert_gguf(path: Path, directory: Path, progress: Progress) -> None:
    """Write configuration, tokenizer and weights of the GGUF file into an existing directory.

    Raises:
        UnsupportedModelError: the architecture, tokenizer or storage type is not supported.
        TargetError: the file is damaged, or its parts contradict each other.
        OSError: the directory cannot be written.
    """
    progress(f"reading {path.name}", None)
    file = GgufFile(path)
    config = huggingface_config(file)
    tokenizer = read_tokenizer(file)
    config["bos_token_id"] = tokenizer.bos_token_id
    config["pad_token_id"] = tokenizer.pad_token_id
    config["eos_token_id"] = _one_or_many(tokenizer.end_token_ids)
    _write_descriptions(directory, config, tokenizer)
    _write_weights(file, Architecture.from_config(config), directory, progress)


def _write_descriptions(directory: Path, config: dict[str, Any], tokenizer: TokenizerFiles) -> None:
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", generation)
    write_json(directory / "tokenizer_config.json", tokenizer.tokenizer_config)
    write_json(directory / "special_tokens_map.json", tokenizer.special_tokens_map)
    (directory / "tokenizer.json").write_text(tokenizer.tokenizer, encoding="utf-8")


def _write_weights(file: GgufFile, architecture: Architecture, directory: Path, progress: Progress) -> None:
    plans = tensor_plans(file, architecture)
    total = sum(plan.num_bytes for plan in plans)
    require_space(directory, total)
    written = 0

    def on_written(num_bytes: int) -> None:
        nonlocal written
        written += num_bytes
        progress(f"writing {SINGLE_FILE}", written / total)

    try:
        write_safetensors(directory / SINGLE_FILE, plans, on_written)
    except ValueError as error:
        raise TargetError(f"{file.path} is damaged: {error}") from error


def _one_or_many(ids: tuple[int, ...]) -> int | list[int] | None:
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)
