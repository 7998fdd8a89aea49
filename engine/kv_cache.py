"""Block allocator of the paged KV cache.

A request reserves every block it can ever need when it is admitted, so a running request is never evicted and
a step never fails for want of memory. A block may have several holders, which then only read it (see
`engine.prefix_cache`). Freed blocks are reused last-in first-out, which keeps the touched part of a large cache
small.
"""

from collections.abc import Sequence


class BlockPool:
    """Hands out cache blocks by number and counts the holders of each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, rows: int) -> int:
        """How many blocks hold `rows` rows."""
        return -(-rows // self.block_size)

    def holders(self, block: int) -> int:
        """How often a block is held."""
        return self._holders[block]

    def allocate(self, rows: int) -> list[int] | None:
        """Blocks for `rows` rows, held once, or None if not enough are free."""
        count = self.blocks_for(rows)
        if count > len(self._free):
            return None
        blocks = [self._free.pop() for _ in range(count)]
        self.hold(blocks)
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """Hold allocated blocks once more."""
        for block in blocks:
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one hold of each block; those that nobody holds any more are free.

        Raises:
            ValueError: a block is free already; the caller's book-keeping is broken.
        """
        if free := sorted({block for block in blocks if not self._holders[block]}):
            raise ValueError(f"blocks {free} are released twice")
        for block in blocks:
            self._holders[block] -= 1
        self._free.extend(block for block in reversed(blocks) if not self._holders[block])
