"""JSON files that others wrote, read within bounds.

Example::

    config = read_json_object(directory / "config.json", CheckpointError)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 512 * 2**20
"""Of a file; the largest that models have, tokenizers and indices of weights, are a tenth of it."""
MOST_DEPTH = 100
"""Of objects and lists within each other. What goes through them later, in its own way, has a stack, too."""


def read_json(path: Path, error: Callable[[str], Exception], absent: str = "") -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        error: makes what is raised of a text.
        absent: what to say where the file is missing, beside that.

    Raises:
        What `error` makes: the file is missing, cannot be read, is no UTF-8 JSON, or past the bounds.
    """
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path} is no file")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise error(f"{path} is larger than {MOST_BYTES >> 20} MiB, which no file of its kind is")
        content = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing{f'; {absent}' if absent else ''}") from None
    except RecursionError:
        content = None
        deep = True
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read as JSON: {problem}") from problem
    else:
        deep = _is_deep(content)
    if deep:
        raise error(
            f"{path} cannot be read as JSON: more than {MOST_DEPTH} objects or lists within each other"
        )
    return content


def read_json_object(path: Path, error: Callable[[str], Exception], absent: str = "") -> dict[str, Any]:
    """What a JSON file holds that must hold an object; arguments and errors as of `read_json`."""
    content = read_json(path, error, absent)
    if not isinstance(content, dict):
        raise error(f"{path} holds a JSON {type(content).__name__}; it must hold an object")
    return content


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MOST_DEPTH + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
