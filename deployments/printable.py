"""Text from files that others wrote, made fit for a line on a terminal."""

import re
from collections.abc import Iterator
from typing import Any

# C0 without tab and newline, DELETE, C1: a terminal takes these for orders.
_ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_ENDS = re.compile(r"[\n\x85\u2028\u2029]")


def visible(text: str) -> str:
    """The text with every control character but tab and newline spelt out, such as `\\x1b`."""
    return _ORDERS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: str) -> str:
    """The same, and its line ends spelt out too."""
    return visible(_LINE_ENDS.sub(lambda found: repr(found[0])[1:-1], text))


def control_characters(content: Any) -> Iterator[str]:
    """Keys and values with control characters or line ends in what a YAML file holds, spelt out.

    Each is looked at once, however often the file refers to it, and nesting costs no stack.
    """
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if one_line(item) != item:
                yield one_line(item)
        elif id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, dict):
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set):
                waiting += item
