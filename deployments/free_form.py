"""Keys of the spec that hand others whatever stands there: it has to be what JSON can say, as those read it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from deployments.files.reading import MOST_DEPTH

_MOST_VALUES = 100_000  # one that refers to others again and again has no end


def _plain(given: Mapping[str, Any]) -> Any:
    waiting: list[tuple[str, Any, int]] = [("", given, 0)]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return given
        where, value, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"{where[:80]}…: more than {MOST_DEPTH} mappings or lists within each other")
        waiting += [(f"{where}.{key}".lstrip("."), item, depth + 1) for key, item in _items(where, value)]
    raise ValueError(f"more than {_MOST_VALUES} values, counted wherever one is referred to")


def _items(where: str, value: Any) -> Iterator[tuple[Any, Any]]:
    """What a value holds, which is nothing for most."""
    if isinstance(value, list):
        yield from enumerate(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | None):
                raise ValueError(
                    f"{where or 'a key'}: a key is a {type(key).__name__}, which JSON has none of"
                )
            yield key, item
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{where}: a {type(value).__name__}, which JSON has none of; a text has quotes")


FreeForm = Annotated[dict[str, Any], AfterValidator(_plain)]
"""Texts, numbers, true, false, null, lists and mappings of these."""
