"""How much of a text's end has stood in it before: what a lookup has to go by, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 8
"""Longer matches are told as this; above it acceptance hardly grows."""


class Repetition:
    """Follows a growing text.

    Memory and time: one set entry for each token and length.

    Example:
        >>> text = Repetition([1, 2, 3, 9, 2, 3])
        >>> text.match
        2
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._seen: set[tuple[int, ...]] = set()
        self._end: tuple[int, ...] = ()
        self.length = 0
        self.match = 0
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens; `match` is then the length of the longest end that stood there before, `length` the text's."""
        for token in tokens:
            self._end = (*self._end, token)[-LONGEST:]
            ends = [self._end[-size:] for size in range(1, len(self._end) + 1)]
            # If an end has occurred, so have all shorter ones.
            self.match = sum(end in self._seen for end in ends)
            self._seen.update(ends)
        self.length += len(tokens)
