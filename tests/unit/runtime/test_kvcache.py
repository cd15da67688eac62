"""KV blocks: never owned twice, never lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.kvcache import BlockPool


@given(
    blocks=st.integers(1, 20),
    block_size=st.integers(1, 8),
    moves=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60), st.booleans()), max_size=60),
)
def test_blocks_belong_to_one_owner_or_to_the_pool(
    blocks: int, block_size: int, moves: list[tuple[int, int, bool]]
) -> None:
    pool = BlockPool(blocks, block_size)
    tables: list[list[int]] = [[] for _ in range(5)]
    for owner, tokens, release in moves:
        before = list(tables[owner])
        if release:
            pool.release(tables[owner])
        elif pool.grow(tables[owner], tokens):
            assert len(tables[owner]) * block_size >= tokens
            assert tables[owner][: len(before)] == before
        else:
            assert tables[owner] == before
        owned = [block for table in tables for block in table]
        assert sorted(owned + pool.free) == list(range(blocks))
        assert pool.used == len(owned)
