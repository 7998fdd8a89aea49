"""Reading and writing the JSON files of a model directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build.targets.errors import TargetError
from speculators.formats.files import replace_file


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object.

    Raises:
        TargetError: the file is missing, unreadable, not UTF-8 JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TargetError(f"{path} is missing; a model in Hugging Face layout has it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TargetError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise TargetError(f"{path} holds a JSON {type(content).__name__}; it must hold an object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented UTF-8 JSON; a file that is there is replaced, not written to: it may be a link.

    Raises:
        OSError: the file cannot be written.
    """
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
