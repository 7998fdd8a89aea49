"""Block allocator of the paged KV cache.

A request reserves every block it can ever need when it is admitted, so a running request is never evicted and
a step never fails for want of memory. Freed blocks are reused last-in first-out, which keeps the touched part
of a large cache small.
"""

from collections.abc import Sequence


class BlockPool:
    """Hands out cache blocks by number."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, rows: int) -> int:
        """Blocks that hold so many rows."""
        return -(-rows // self.block_size)

    def allocate(self, rows: int) -> list[int] | None:
        """Blocks for so many rows, or None if not enough are free."""
        count = self.blocks_for(rows)
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: a block is free already; the caller's book-keeping is broken.
        """
        if not set(blocks).isdisjoint(self._free):
            raise ValueError(f"blocks {sorted(set(blocks) & set(self._free))} are released twice")
        self._free.extend(reversed(blocks))
