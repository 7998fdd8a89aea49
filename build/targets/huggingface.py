"""From a local Hugging Face directory to a complete one of our own.

Weights are linked (copied where the file system cannot link), everything else is copied, and what later steps
expect but the source lacks is filled in: generation_config.json, special_tokens_map.json, and the chat
templates inside tokenizer_config.json, where newer Transformers leave them in files of their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build.targets.architecture import Architecture
from build.targets.download import Progress
from build.targets.errors import TargetError
from build.targets.files import copy_new, link_or_copy
from build.targets.weights import INDEX_FILE, SINGLE_FILE, load_weights, weight_files
from deployments.files.reading import read_json_object
from deployments.files.writing import write_json
from speculators.formats.errors import CheckpointError
from speculators.formats.shards import check_inside

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_LEGAL_PATTERNS = ("LICENSE*", "NOTICE*")
_MORE_TEMPLATES = "additional_chat_templates/*.jinja"


def check_huggingface(source: Path) -> None:
    """Refuse a directory that cannot become a target, before anything is hashed or written.

    Raises:
        UnsupportedModelError: the model is of a kind that is not supported.
        TargetError: a file is missing or damaged, or of a form that must be converted first; the message has
        the command.
    """
    if not (source / "config.json").is_file():
        raise TargetError(
            f"{source} has no config.json, so it is no Hugging Face model directory{_gguf_hint(source)}"
        )
    Architecture.from_directory(source)
    _require_safetensors(source)
    if not (source / "tokenizer.json").is_file():
        raise TargetError(
            f'{source} has no tokenizer.json; write it with Transformers: python -c "from transformers '
            f"import AutoTokenizer as T; T.from_pretrained('{source}').save_pretrained('{source}')\""
        )
    try:
        check_inside(source, source_files(source))
    except CheckpointError as error:
        raise TargetError(str(error)) from None
    load_weights(source)


def source_files(source: Path) -> list[Path]:
    """The files of a source directory that a target takes over, in order of name."""
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    names += ["special_tokens_map.json", "added_tokens.json", "chat_template.jinja"]
    present = [source / name for name in names if (source / name).is_file()]
    legal = [path for pattern in _LEGAL_PATTERNS for path in source.glob(pattern) if path.is_file()]
    return sorted([*present, *legal, *source.glob(_MORE_TEMPLATES), *_weight_sources(source)])


def copy_huggingface(source: Path, directory: Path, progress: Progress) -> None:
    """Write a complete model directory from a checked source into an existing directory.

    Raises:
        TargetError: a JSON file is damaged.
        OSError: the directory cannot be written.
    """
    weights = _weight_sources(source)
    for done, path in enumerate(weights):
        progress(f"linking {path.name}", done / len(weights))
        link_or_copy(path, directory / path.name)
    for path in source_files(source):
        if path not in weights and path.suffix != ".jinja":
            copy_new(path, directory / path.name)
    _complete_generation_config(directory)
    _complete_tokenizer_config(source, directory)
    _complete_special_tokens(directory)


def _weight_sources(source: Path) -> list[Path]:
    files = weight_files(source)
    return files if files[0].name == SINGLE_FILE else [*files, source / INDEX_FILE]


def _require_safetensors(source: Path) -> None:
    if (source / SINGLE_FILE).is_file() or (source / INDEX_FILE).is_file():
        return
    if any(source.glob("pytorch_model*.bin")):
        raise TargetError(
            f"{source} holds its weights as pytorch_model.bin, which can run code when it is read; convert "
            "it once where PyTorch is installed, and pass the new directory: python -c "
            '"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"M.from_pretrained('{source}').save_pretrained('{source}-safetensors'); "
            f"T.from_pretrained('{source}').save_pretrained('{source}-safetensors')\""
        )
    raise TargetError(f"{source} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}{_gguf_hint(source)}")


def _gguf_hint(source: Path) -> str:
    found = sorted(path.name for path in source.glob("*.gguf"))
    return f"; to convert a GGUF file, pass the file itself: {source / found[0]}" if found else ""


def _complete_generation_config(directory: Path) -> None:
    if (directory / "generation_config.json").is_file():
        return
    config = read_json_object(directory / "config.json", TargetError)
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(directory / "generation_config.json", {key: config[key] for key in keys if key in config})


def _complete_tokenizer_config(source: Path, directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    config = (
        read_json_object(path, TargetError)
        if path.is_file()
        else {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    config.update(chat_templates({**_listed_templates(config), **_template_files(source)}))
    write_json(path, config)


def chat_templates(by_name: Mapping[str, str]) -> dict[str, Any]:
    """The key of tokenizer_config.json that holds chat templates: a text, or a list where there are several."""
    if not by_name:
        return {}
    if set(by_name) == {"default"}:
        return {"chat_template": by_name["default"]}
    return {"chat_template": [{"name": name, "template": text} for name, text in by_name.items()]}


def _listed_templates(config: Mapping[str, Any]) -> dict[str, str]:
    found = config.get("chat_template") or {}
    if isinstance(found, str):
        return {"default": found}
    return {entry["name"]: entry["template"] for entry in found} if isinstance(found, list) else dict(found)


def _template_files(source: Path) -> dict[str, str]:
    files = {path.stem: path for path in sorted(source.glob(_MORE_TEMPLATES))}
    if (source / "chat_template.jinja").is_file():
        files["default"] = source / "chat_template.jinja"
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def _complete_special_tokens(directory: Path) -> None:
    if (directory / "special_tokens_map.json").is_file():
        return
    config = read_json_object(directory / "tokenizer_config.json", TargetError)
    found = {role: _content(config[role]) for role in _ROLES if config.get(role)}
    write_json(directory / "special_tokens_map.json", found)


def _content(token: Any) -> Any:
    """Transformers writes a special token as its text, or as an object with flags."""
    return token["content"] if isinstance(token, dict) else token
