"""Paged KV bookkeeping: which blocks are free and whose the others are. Bytes are the backend's."""

from __future__ import annotations


class BlockPool:
    """Free KV blocks. A sequence owns whole blocks of `block_size` token slots."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.free = list(range(blocks - 1, -1, -1))  # a stack: low ids are handed out first

    @property
    def used(self) -> int:
        """Blocks that belong to a sequence."""
        return self.blocks - len(self.free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` slots take."""
        return -(-tokens // self.block_size)

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extend a block table to hold `tokens` slots; False, and nothing taken, if it cannot."""
        missing = self.blocks_for(tokens) - len(table)
        if missing > len(self.free):
            return False
        table.extend(self.free.pop() for _ in range(missing))
        return True

    def release(self, table: list[int]) -> None:
        """Give all blocks of a table back."""
        self.free.extend(reversed(table))
        table.clear()
