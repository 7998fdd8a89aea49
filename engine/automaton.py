"""Finds words in a stream of symbols, all of them at once (Aho and Corasick 1975): each symbol costs the same, however
many words there are.

Example::

    automaton, state = Automaton(["he", "she"]), 0
    for symbol in "ushers":
        state = automaton.step(state, symbol)
        automaton.found[state]      # 0 0 0 3 0 0
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Symbol = TypeVar("Symbol", bound=Hashable)


class Automaton(Generic[Symbol]):
    """Finds words in a stream of symbols; a state is a number, 0 at first.

    Args:
        words: none of them empty.
    """

    def __init__(self, words: Iterable[Sequence[Symbol]]) -> None:
        self._next: list[dict[Symbol, int]] = [{}]
        self._shorter = [0]  # the longest other state that the stream ends with as well
        self.held = [0]
        """By state: symbols at the end of the stream that a word begins with."""
        self.found = [0]
        """By state: length of the longest word that the stream ends with; 0 if it ends with none."""
        self.symbols: set[Symbol] = set()
        for word in words:
            self._add(word)
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for symbol, following in self._next[state].items():
                self._shorter[following] = self.step(self._shorter[state], symbol)
                self.found[following] = self.found[following] or self.found[self._shorter[following]]
                waiting.append(following)

    def step(self, state: int, symbol: Symbol) -> int:
        """The state after one symbol more."""
        while symbol not in self._next[state]:
            if not state:
                return 0
            state = self._shorter[state]
        return self._next[state][symbol]

    def _add(self, word: Sequence[Symbol]) -> None:
        self.symbols.update(word)
        state = 0
        for symbol in word:
            if symbol not in self._next[state]:
                self._next[state][symbol] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.held.append(self.held[state] + 1)
                self.found.append(0)
            state = self._next[state][symbol]
        self.found[state] = len(word)
