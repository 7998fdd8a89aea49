"""How much of a text's end has stood in it before: what a lookup has to go by, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 8
"""Longer matches are told as this; above it acceptance hardly grows."""
_TOKEN_BITS = 32
_NONE = -1


class Repetition:
    """Follows a growing text.

    A trie of the text read backwards, to a depth of `LONGEST`, that has of each place only the ends that had stood
    before and the next longer one: of what has stood once, the text itself says how it goes on. So a token takes a few
    dictionary look-ups, and mostly one new entry.

    Example:
        >>> text = Repetition([1, 2, 3, 9, 2, 3])
        >>> text.match
        2
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._text: list[int] = []
        self._child: dict[
            int, int
        ] = {}  # node and the token before, in one integer -> node; 0 is the empty end
        self._first = [_NONE]  # of each node, where it stood first
        self.match = 0
        self.extend(tokens)

    @property
    def length(self) -> int:
        """Of the text."""
        return len(self._text)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens; `match` is then the length of the longest end that stood there before, `length` the text's."""
        text, child, first = self._text, self._child, self._first
        for token in tokens:
            at = len(text)
            text.append(token)
            longest = min(at + 1, LONGEST)
            node = match = 0
            while match < longest:
                below = child.get(node << _TOKEN_BITS | text[at - match], _NONE)
                if below < 0:
                    break
                node, match = below, match + 1
            # Ends that are longer stood at most once, and then where this one stood first.
            stood = first[node]
            while match <= stood and match < longest and text[stood - match] == text[at - match]:
                child[node << _TOKEN_BITS | text[at - match]] = node = len(first)
                first.append(stood)
                match += 1
            if match < longest:
                child[node << _TOKEN_BITS | text[at - match]] = len(first)
                first.append(at)
        if len(tokens):
            self.match = match
