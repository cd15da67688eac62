"""Ranks of one model as threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from headrace.runtime.backends.base import Batch, Float32, KVLayout
from headrace.runtime.backends.reference import ReferenceBackend
from headrace.runtime.models.program import Program
from headrace.runtime.models.sharding import shard
from headrace.runtime.weights.tensor import Tensor

PATIENCE = 20.0  # seconds, for ranks that do not call the same


class Threads:
    """One rank's view of ranks that are threads; `shared` has what each of them brought."""

    def __init__(self, rank: int, shared: list[Float32], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(shared)
        self.shared, self.barrier = shared, barrier

    def sum(self, rows: Float32) -> None:
        rows[...] = sum(self.exchange(rows.copy()))

    def gather(self, part: Float32, widths: Sequence[int]) -> Float32:
        assert part.shape[1] == widths[self.rank]
        return np.concatenate(self.exchange(part), axis=1)

    def leave(self) -> None:
        self.barrier.abort()

    def exchange(self, own: Float32) -> list[Float32]:
        self.shared[self.rank] = own
        self.barrier.wait(PATIENCE)
        found = list(self.shared)
        self.barrier.wait(PATIENCE)
        return found


class Together:
    """A model cut into parts, each of which the reference runs in a thread."""

    def __init__(
        self, program: Program, weights: Mapping[str, Tensor], kv: KVLayout, size: int
    ) -> None:
        shared: list[Float32] = [np.zeros(0, np.float32)] * size
        barrier = threading.Barrier(size)
        self.shards = [shard(program, weights, rank, size) for rank in range(size)]
        self.backends = [
            ReferenceBackend(one.program, one.weights, kv, Threads(rank, shared, barrier))
            for rank, one in enumerate(self.shards)
        ]

    def logits(self, batch: Batch) -> Float32:
        """What rank 0 gets."""
        with ThreadPoolExecutor(len(self.backends)) as threads:
            found: list[Float32] = list(
                threads.map(lambda backend: backend.logits(batch), self.backends)
            )
        return found[0]
