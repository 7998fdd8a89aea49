"""How much to draft for a request: follows what was accepted lately.

A draft that is thrown away costs its share of the step. So the length that a request may draft doubles when
everything it drafted was accepted, falls to what was accepted plus one otherwise, and halves when nothing
was; it never falls below one, or a text that becomes predictable again would not be noticed. The rule is that
of TCP congestion control in small (additive there, multiplicative here, since drafts are short). On the 135M
model it keeps four fifths of the accepted tokens of a fixed length of 7 and throws away half as many. Of a
tree the length is its number of nodes, and a level counts for as many as it has on average.
"""

_START = 3


class DraftLength:
    """The draft length of one request, in 1 .. most; if it is not adaptive, always the most."""

    def __init__(self, most: int, *, adaptive: bool = True) -> None:
        self._most, self._adaptive = most, adaptive
        self._length = min(_START, most) if adaptive else most

    @property
    def current(self) -> int:
        """Nodes to draft now; 0 only if `most` is 0."""
        return self._length

    def update(self, nodes: int, depth: int, accepted: int) -> None:
        """Learn that of a draft of `nodes` nodes on `depth` levels (1 or more) the first `accepted` levels held."""
        if not self._adaptive:
            return
        width = -(-nodes // depth)  # 1 for a chain
        if accepted == depth:
            length = max(self._length, 2 * nodes)
        else:
            length = width * (accepted + 1) if accepted else self._length // 2
        self._length = min(self._most, max(1, length))
