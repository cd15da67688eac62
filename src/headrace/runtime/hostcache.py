"""KV blocks in host memory: what the device's pool had to give away, by the hash of its content.

The hashes are those of `kvcache`, salted alike, so a block serves whoever could have shared it on
the device. A block that is evicted there is copied here before the next step writes over it; one
that a sequence needs is copied back. Here is the bookkeeping: which block goes where, in order, and
which are still on their way. The backend copies, beside its steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from collections.abc import Sequence as Several

from .backends.base import Move, Transfer

Copy = Callable[[Several[Move]], Transfer]


class HostBlocks:
    """A bounded number of blocks, the longest unused given up first; `copy` begins moves."""

    def __init__(self, blocks: int, copy: Copy) -> None:
        self.blocks = blocks
        self.copy = copy
        self.slot_of: OrderedDict[bytes, int] = OrderedDict()  # longest unused first
        self.free = list(range(blocks - 1, -1, -1))
        self.moves: list[Move] = []  # to be begun before the next step
        # device blocks that are being fetched; None: their move is among `moves`
        self.coming: dict[int, Transfer | None] = {}
        self.offloaded = self.fetched = 0

    @property
    def used(self) -> int:
        """Blocks that hold something."""
        return self.blocks - len(self.free)

    def keep(self, digest: bytes, block: int) -> None:
        """Copy a block that the device gives away, unless it is here or not there yet."""
        if digest in self.slot_of:
            self.slot_of.move_to_end(digest)
        elif block not in self.coming and (self.free or self.slot_of):
            slot = self.free.pop() if self.free else self.slot_of.popitem(last=False)[1]
            self.slot_of[digest] = slot
            self.moves.append(Move(block, slot, out=True))
            self.offloaded += 1

    def claim(self, chain: Several[bytes]) -> list[tuple[bytes, int]]:
        """The beginning of a chain that is here, taken out of the order: nothing evicts it until
        `fetch`."""
        found = []
        for digest in chain:
            slot = self.slot_of.pop(digest, None)
            if slot is None:
                break
            found.append((digest, slot))
        return found

    def fetch(self, claimed: Several[tuple[bytes, int]], blocks: Several[int]) -> None:
        """Copy what was claimed to blocks of the device; it stays here as well."""
        for (_, slot), block in zip(claimed, blocks, strict=True):
            self.moves.append(Move(block, slot, out=False))
            self.coming[block] = None
        self.slot_of.update(reversed(claimed))  # the end of a prefix goes before its beginning
        self.fetched += len(claimed)

    def settle(self) -> None:
        """Forget about moves that are over."""
        if self.coming:
            over = [block for block, one in self.coming.items() if one is not None and one.done()]
            for block in over:
                del self.coming[block]

    def begin(self, blocks: Collection[int]) -> None:
        """Begin the moves before a step that works on `blocks`: it waits for what comes there.

        Raises what `copy` raises: then nothing is here any more, and nothing of it has begun.
        """
        if self.moves:
            moves, self.moves = self.moves, []
            try:
                transfer = self.copy(moves)
            except BaseException:
                self.slot_of.clear()
                self.free = list(range(self.blocks - 1, -1, -1))
                raise
            self.coming = {block: one or transfer for block, one in self.coming.items()}
        if self.coming:
            awaited = {one for block in blocks if (one := self.coming.get(block)) is not None}
            for one in awaited:
                one.join()
            self.coming = {block: one for block, one in self.coming.items() if one not in awaited}

    def lose(self) -> list[int]:
        """Give up what was to come and has not begun: the blocks of the device that wait for it."""
        lost = [block for block, one in self.coming.items() if one is None]
        for block in lost:
            del self.coming[block]
        return lost
