"""Which request has which cache of a network with a KV cache."""

from __future__ import annotations


class Slots:
    """Hands out `count` slots; the one given back last is taken first.

    Args:
        method: what errors call the speculator.
    """

    def __init__(self, method: str, count: int) -> None:
        self._method, self._count = method, count
        self._free = list(range(count - 1, -1, -1))

    def take(self) -> int:
        """A free slot.

        Raises:
            ValueError: all are taken.
        """
        if not self._free:
            raise ValueError(f"{self._method}: all {self._count} slots are taken; finish a request first")
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Make a slot free again."""
        self._free.append(slot)
