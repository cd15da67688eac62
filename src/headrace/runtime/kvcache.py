"""Paged KV bookkeeping: which blocks are free, whose the others are, which prefixes they hold.

The bytes are the backend's. A full block is known by the hash of all tokens up to its end, as a
chain: hash(hash of the blocks before, its own tokens). The chain begins with a salt, so tenants
never share a block, nor can one tell by its speed what another asked. A block that nobody uses
any more keeps its content until the pool needs it, the longest unused first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from .hostcache import HostBlocks

DIGEST_BYTES = 16  # a collision would be a wrong answer: 128 bits, of a cryptographic hash


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence in order, and the chain of hashes of its full ones."""

    blocks: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    published: int = 0  # of the full blocks, how many the pool knows by their hash


class BlockPool:
    """KV blocks of `block_size` token slots, counted by reference."""

    def __init__(
        self,
        blocks: int,
        block_size: int,
        *,
        share_prefixes: bool = True,
        host: HostBlocks | None = None,
    ) -> None:
        """`host` takes in what is evicted here."""
        self.host = host
        self.blocks = blocks
        self.block_size = block_size
        self.share_prefixes = share_prefixes
        self.blank = list(range(blocks - 1, -1, -1))  # a stack: low ids are handed out first
        self.references = [0] * blocks
        self.hash_of: list[bytes | None] = [None] * blocks
        self.known: dict[bytes, int] = {}
        self.unused: OrderedDict[int, None] = OrderedDict()  # known blocks, longest unused first
        self.evictions = 0

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self.blank) + len(self.unused)

    @property
    def used(self) -> int:
        """Blocks that belong to a sequence."""
        return self.blocks - self.available

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` slots take."""
        return -(-tokens // self.block_size)

    def grow(self, table: BlockTable, tokens: int) -> bool:
        """Extend a table to hold `tokens` slots; False, and nothing taken, if it cannot."""
        missing = self.blocks_for(tokens) - len(table.blocks)
        if missing > self.available:
            return False
        table.blocks.extend(self.take() for _ in range(missing))
        return True

    def take(self) -> int:
        """One block for a single owner, its old content forgotten."""
        if self.blank:
            block = self.blank.pop()
        else:
            block, _ = self.unused.popitem(last=False)
            digest = self.hash_of[block]
            if self.host is not None and digest is not None:
                self.host.keep(digest, block)
            self.forget(block)
            self.evictions += 1
        self.references[block] = 1
        return block

    def forget(self, block: int) -> None:
        """Unlearn what a block holds."""
        digest = self.hash_of[block]
        if digest is not None:
            del self.known[digest]
            self.hash_of[block] = None

    def release(self, table: BlockTable) -> None:
        """Give all blocks of a table back; the last of a prefix is the first to be reused."""
        for block in reversed(table.blocks):
            self.references[block] -= 1
            if self.references[block]:
                continue
            if self.hash_of[block] is None:
                self.blank.append(block)
            else:
                self.unused[block] = None
        table.blocks.clear()
        table.published = 0

    def share(self, table: BlockTable, tokens: Sequence[int], salt: bytes) -> int:
        """Put blocks that hold the beginning of `tokens` already into an empty table.

        Returns how many tokens they hold: never all, since the last one's logits are wanted.
        """
        if not self.share_prefixes:
            return 0
        full = (len(tokens) - 1) // self.block_size
        for digest in self.chain(table, tokens, salt, full):
            block = self.known.get(digest)
            if block is None:
                break
            if not self.references[block]:
                del self.unused[block]
            self.references[block] += 1
            table.blocks.append(block)
        table.published = len(table.blocks)
        return table.published * self.block_size

    def extend(self, table: BlockTable, tokens: Sequence[int], salt: bytes, slots: int) -> int:
        """Grow a table, which `share` was asked about and for which there are blocks, to hold
        `slots`; what host memory has of `tokens` is fetched. Returns how many of them it will hold.
        """
        known, claimed = table.published, list[tuple[bytes, int]]()
        if self.host is not None and self.share_prefixes:
            full = (len(tokens) - 1) // self.block_size
            claimed = self.host.claim(self.chain(table, tokens, salt, full)[known:])
        self.grow(table, slots)
        if self.host is not None and claimed:
            fetched = table.blocks[known : known + len(claimed)]
            self.host.fetch(claimed, fetched)
            for (digest, _), block in zip(claimed, fetched, strict=True):
                self.learn(digest, block)
            table.published += len(claimed)
        return table.published * self.block_size

    def arriving(self, table: BlockTable) -> bool:
        """Whether something that the table holds is still on its way from host memory."""
        host = self.host
        return host is not None and not host.coming.keys().isdisjoint(table.blocks)

    def lose_arrivals(self) -> list[int]:
        """Unlearn blocks that were to come from host memory and did not begin to."""
        lost = [] if self.host is None else self.host.lose()
        for block in lost:
            self.forget(block)
            if block in self.unused:
                del self.unused[block]
                self.blank.append(block)
        return lost

    def learn(self, digest: bytes, block: int) -> None:
        """Note what a block holds; of two that hold the same the first is the known one."""
        if digest not in self.known:
            self.known[digest] = block
            self.hash_of[block] = digest

    def empty(self) -> None:
        """Forget what unused blocks hold."""
        while self.unused:
            block, _ = self.unused.popitem()
            self.forget(block)
            self.blank.append(block)

    def publish(self, table: BlockTable, tokens: Sequence[int], computed: int, salt: bytes) -> None:
        """Let others share the table's blocks that the first `computed` tokens fill."""
        full = computed // self.block_size
        if full <= table.published or not self.share_prefixes:
            return
        chain = self.chain(table, tokens, salt, full)
        for index in range(table.published, full):
            self.learn(chain[index], table.blocks[index])
        table.published = full

    def chain(
        self, table: BlockTable, tokens: Sequence[int], salt: bytes, full: int
    ) -> list[bytes]:
        """The hashes of the first `full` blocks; those that are worked out already are kept."""
        chain = table.chain
        while len(chain) < full:
            begin = len(chain) * self.block_size
            content = array("i", tokens[begin : begin + self.block_size]).tobytes()
            before = chain[-1] if chain else salt
            chain.append(blake2b(content, key=before, digest_size=DIGEST_BYTES).digest())
        return chain[:full]
