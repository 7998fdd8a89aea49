"""Words that several parts of a report use."""

from __future__ import annotations

from collections.abc import Sequence


def all_users(levels: Sequence[float]) -> str:
    """Concurrencies in a sentence: "1 user", "1, 2 and 4 users"."""
    *most, last = (f"{level:g}" for level in levels)
    numbers = f"{', '.join(most)} and {last}" if most else last
    return f"{numbers} user{'' if numbers == '1' else 's'}"
