"""Drafts that several speculators make in turns, each going on where the others end.

The one that a request's assignment names first is asked first, and again after every other one that has added
something; a draft has ended when all have been asked in vain, or it is as long as it may be. All requests take their
turns side by side, so that a drafter runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.policy import Assignment, Choice
from engine.running import RunningRequest
from speculators.tree import EMPTY, TokenTree


class Chain:
    """A draft in the making.

    Attributes:
        item: the request.
        tree: what has been drafted.
        began: who drafted its first token; empty if nobody has.
        asked: the speculators that were asked.
    """

    def __init__(self, item: RunningRequest, choices: Assignment) -> None:
        self.item, self.tree, self.began = item, EMPTY, ""
        self.asked: set[str] = set()
        self._choices, self._left = choices, list(choices)

    @property
    def turn(self) -> Choice | None:
        """Whom to ask next, and for how many more nodes; None: it has ended."""
        while self._left:
            choice = self._left[0]
            if (room := choice.budget - len(self.tree)) > 0:
                return Choice(choice.speculator, room, takes_turns=True)
            del self._left[0]
        return None

    def take(self, more: TokenTree) -> None:
        """Take in what the one whose turn it was has added; after it, all others are asked before it is again."""
        last = self._left.pop(0)
        self.asked.add(last.speculator)
        if len(more):
            self.tree, self.began = self.tree.extended(more), self.began or last.speculator
            self._left = [*(each for each in self._choices if each is not last), last]


Ask = Callable[[str, Sequence[Chain], Sequence[Choice]], Sequence[TokenTree]]
"""Asks a speculator to go on with these chains, by these choices."""


def drafted_in_turns(chains: Sequence[Chain], ask: Ask) -> None:
    """Make drafts, until none goes on."""
    going = [(chain, turn) for chain in chains if (turn := chain.turn)]
    while going:
        groups: dict[str, list[tuple[Chain, Choice]]] = {}
        for chain, turn in going:
            groups.setdefault(turn.speculator, []).append((chain, turn))
        for name, mine in groups.items():
            found = ask(name, [chain for chain, _ in mine], [turn for _, turn in mine])
            for (chain, _), more in zip(mine, found, strict=True):
                chain.take(more)
        going = [(chain, turn) for chain, _ in going if (turn := chain.turn)]
