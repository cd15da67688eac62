"""KV blocks: never owned twice, never lost, shared only by equal prefixes of one tenant."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.kvcache import BlockPool, BlockTable

A, B = b"a", b"b"  # two tenants' salts


def check(pool: BlockPool, tables: list[BlockTable]) -> None:
    """Each block is blank, kept or owned, and is counted as often as it is owned."""
    owned = [block for table in tables for block in table.blocks]
    assert [owned.count(block) for block in range(pool.blocks)] == pool.references
    apart = [*pool.blank, *pool.unused, *set(owned)]
    assert sorted(apart) == list(range(pool.blocks))
    assert pool.used == len(set(owned))
    assert sorted(pool.known.values()) == [
        block for block in range(pool.blocks) if pool.hash_of[block] is not None
    ]


@settings(max_examples=300)
@given(
    blocks=st.integers(1, 12),
    moves=st.lists(
        st.tuples(st.integers(0, 3), st.text("xy", max_size=20), st.sampled_from([A, B])),
        max_size=30,
    ),
)
def test_a_shared_block_always_holds_the_tokens_that_its_readers_expect(
    blocks: int, moves: list[tuple[int, str, bytes]]
) -> None:
    """A model of what an engine does: `written` is what each block's slots really hold."""
    pool = BlockPool(blocks, 2)
    tables = [BlockTable() for _ in range(4)]
    written: dict[int, tuple[bytes, str]] = {}
    for owner, text, salt in moves:
        pool.release(tables[owner])
        tables[owner] = table = BlockTable()
        tokens = [ord(letter) for letter in text]
        if not tokens:
            continue
        shared = pool.share(table, tokens, salt)
        assert shared < len(tokens)
        for index, block in enumerate(table.blocks):
            assert written[block] == (salt, text[: 2 * (index + 1)])
        if not pool.grow(table, len(tokens)):
            pool.release(table)
            continue
        for index in range(shared // 2, len(table.blocks)):
            written[table.blocks[index]] = (salt, text[: 2 * (index + 1)])
        pool.publish(table, tokens, len(tokens), salt)
        check(pool, tables)
    for table in tables:
        pool.release(table)
    assert pool.used == 0


def fill(pool: BlockPool, tokens: list[int], salt: bytes = A) -> BlockTable:
    """A sequence that was computed and ended."""
    table = BlockTable()
    pool.share(table, tokens, salt)
    assert pool.grow(table, len(tokens))
    pool.publish(table, tokens, len(tokens), salt)
    pool.release(table)
    return table


def shared(pool: BlockPool, tokens: list[int], salt: bytes = A) -> int:
    table = BlockTable()
    found = pool.share(table, tokens, salt)
    pool.release(table)
    return found


def test_an_equal_prefix_is_found_in_whole_blocks() -> None:
    pool = BlockPool(8, 4)
    fill(pool, list(range(10)))
    assert shared(pool, list(range(10))) == 8
    assert shared(pool, [*range(6), 99, 100, 101]) == 4
    assert shared(pool, [99, *range(1, 10)]) == 0


def test_the_last_token_is_always_computed() -> None:
    pool = BlockPool(8, 4)
    fill(pool, list(range(8)))
    assert shared(pool, list(range(8))) == 4


def test_another_tenant_shares_nothing() -> None:
    pool = BlockPool(8, 4)
    fill(pool, list(range(10)), A)
    assert shared(pool, list(range(10)), B) == 0


def test_the_longest_unused_goes_first_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pool = BlockPool(4, 4)
    fill(pool, list(range(8)))
    fill(pool, [50, 51, 52, 53, 54])
    fill(pool, [60, 61, 62, 63, 64])  # needs two blocks: one is blank, one is taken
    assert pool.evictions == 1
    assert shared(pool, list(range(9))) == 4
    assert shared(pool, [50, 51, 52, 53, 54]) == 4


def test_sharing_can_be_turned_off() -> None:
    pool = BlockPool(8, 4, share_prefixes=False)
    fill(pool, list(range(10)))
    assert shared(pool, list(range(10))) == 0
    assert len(pool.blank) == 8
