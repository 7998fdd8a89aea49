"""Where what a deployment makes lies: compiled networks under names that say what is in them, the rest under its own.

A compiled network is named by its model, precision and longest sequence for people, and by a hash of all that decides
what is in it. So two deployments that differ in any of it never undo each other, and those that do not share it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.drafting import Speculation
from deployments.files.hashes import content_hash, file_sha256
from deployments.speculation import AnySpeculation

ENGINE_FORMAT = 4
"""Of compiled networks; another one for every change of what the compiler writes."""
ENGINES = Path("runs/engines")
KIT_PROMPTS = Path(__file__).parents[1] / "loadtest" / "prompts" / "drafthouse.jsonl"
"""The prompts that come with the kit, wherever a command runs."""
_DIGITS = 12
# What decides how drafts are used, or is told apart by the content of what it names.
_NOT_COMPILED = {
    *Speculation.model_fields,
    *("method", "checkpoint", "model", "precision"),
    *("draft_length", "use_draft_logits", "suffix_automaton", "texts"),
}


def target_directory(model: Path, precision: str, max_sequence_length: int) -> Path:
    """Where the compiled target lies.

    Raises:
        OSError: the model cannot be read.
    """
    return _named([model.name, precision, str(max_sequence_length)], content_hash(model))


def speculator_directory(
    speculation: AnySpeculation, model: Path, precision: str, max_sequence_length: int
) -> Path:
    """Where the compiled speculator lies; never there for methods without weights.

    Raises:
        OSError: target or checkpoint cannot be read.
    """
    source = drafter_source(speculation)
    contents = [source_hash(path) for path in (model, source) if path is not None]
    parts = [model.name, speculation.method, precision, str(max_sequence_length)]
    return _named(parts, *contents, graph_settings(speculation))


def drafter_source(speculation: AnySpeculation) -> Path | None:
    """The directory of the drafter's weights that the section names, or its file of texts; None for methods without."""
    named = (getattr(speculation, key, None) for key in ("checkpoint", "model", "texts"))
    return next((path for path in named if path is not None), None)


def source_hash(path: Path) -> str:
    """Hash of a directory of weights, or of a file.

    Raises:
        OSError: it cannot be read.
    """
    return file_sha256(path) if path.is_file() else content_hash(path)


def graph_settings(speculation: AnySpeculation) -> dict[str, Any]:
    """What of a speculation section decides the compiled graphs."""
    return speculation.model_dump(mode="json", exclude=_NOT_COMPILED)


def filled_in(path: Path, words: Mapping[str, str]) -> Path:
    """The path with `{name}` and the like replaced by what they stand for."""
    text = str(path)
    for word, value in words.items():
        text = text.replace(f"{{{word}}}", value)
    return Path(text)


def _named(parts: list[str], *contents: Any) -> Path:
    digest = hashlib.sha256(json.dumps([ENGINE_FORMAT, parts, contents]).encode()).hexdigest()
    return ENGINES / "-".join([*parts, digest[:_DIGITS]])
