"""Rotation, the paged cache and attention of the CUDA backend, against the reference."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.runtime.backends import cuda, reference
from headrace.runtime.backends.base import Backend, Batch, Float32, KVLayout, KVType
from headrace.runtime.backends.cuda.inputs import Arena
from headrace.runtime.backends.cuda.prefixes import SPLIT, shared_runs
from headrace.runtime.backends.cuda.tiles import FINISHED, plan_tiles
from headrace.runtime.models.architecture import Rope
from headrace.runtime.models.program import Attention, Embed, Logits, Op, RotateAndWrite
from headrace.runtime.weights.tensor import Tensor
from tests.fakes.programs import program, ragged_batch, tensor

TOKENS = 50


@dataclass(frozen=True)
class Case:
    """One shape, and the rows that each sequence adds in each step."""

    steps: list[list[int]]
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    rotated: int = 32
    interleaved: bool = False
    block_size: int = 32
    window: int = 0
    cap: float = 0.0
    causal: bool = True
    sinks: bool = False
    seed: int = 0
    kv: KVType = "f16"


def model(case: Case) -> tuple[list[Op], dict[str, int], dict[str, Tensor]]:
    """Ops whose logits are the attended values of rows that the tokens name."""
    random = np.random.default_rng(case.seed)
    width = case.heads * case.head_size
    shape = (0, case.heads, case.kv_heads, case.head_size)
    rope = Rope(tuple(10_000.0 ** -np.linspace(0, 1, case.rotated)), case.interleaved, scale=1.2)
    attention = Attention(
        "attended",
        "qkv",
        *shape,
        scale=case.head_size**-0.5,
        window=case.window,
        cap=case.cap,
        sinks="sinks" if case.sinks else None,
        causal=case.causal,
    )
    ops: list[Op] = [
        Embed("qkv", "table"),
        RotateAndWrite("qkv", *shape, rope),
        attention,
        Logits("attended", "identity"),
    ]
    buffers = {"qkv": width + 2 * case.kv_heads * case.head_size, "attended": width}
    weights = {
        "table": tensor(random.standard_normal((TOKENS, buffers["qkv"]), np.float32)),
        "sinks": tensor(random.standard_normal((1, case.heads), np.float32)),
        "identity": tensor(np.eye(width, dtype=np.float32)),
    }
    return ops, buffers, weights


def batches(case: Case, kv: KVLayout) -> list[Batch]:
    """The steps; every sequence's blocks are scattered over the cache."""
    random = np.random.default_rng(case.seed)
    tables = random.permutation(kv.blocks).astype(np.int32).reshape(len(case.steps[0]), -1)
    lengths = np.zeros(len(case.steps[0]), np.int64)
    made = []
    for step in case.steps:
        present = [index for index, rows in enumerate(step) if rows]
        spans = [(int(lengths[index]), step[index]) for index in present]
        tokens = list(random.integers(0, TOKENS, sum(step)))
        made.append(ragged_batch(spans, tables[present], kv, tokens))
        lengths += step
    return made


def both(case: Case) -> tuple[list[Float32], list[Float32]]:
    """The logits of every step: of this backend, of the reference."""
    ops, buffers, weights = model(case)
    made = program(
        ops, buffers, buffers["attended"], kv_heads=case.kv_heads, head_size=case.head_size
    )
    longest = max(sum(rows) for rows in zip(*case.steps, strict=True))
    blocks = len(case.steps[0]) * -(-longest // case.block_size)
    kv = KVLayout(blocks, case.block_size, case.kv)
    backends: list[Backend] = [
        cuda.load(made, weights, kv, 0),
        reference.load(made, weights, kv, 1),
    ]
    actual, expected = (
        [backend.logits(batch) for batch in batches(case, kv)] for backend in backends
    )
    return actual, expected


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads, sequences = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_size = draw(st.sampled_from([32, 40, 64, 96, 128]))
    rows = st.one_of(st.integers(0, 2), st.integers(3, 40))
    step = st.lists(rows, min_size=sequences, max_size=sequences).filter(any)
    return Case(
        steps=draw(st.lists(step, min_size=1, max_size=3)),
        heads=kv_heads * draw(st.sampled_from([1, 2, 3, 8])),
        kv_heads=kv_heads,
        head_size=head_size,
        rotated=draw(st.integers(0, head_size // 2)),
        interleaved=draw(st.booleans()),
        block_size=draw(st.sampled_from([1, 8, 32, 40])),
        window=draw(st.sampled_from([0, 0, 1, 5, 33])),
        cap=draw(st.sampled_from([0.0, 0.0, 2.0])),
        sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=8)
@given(case=cases())
def test_ragged_steps_equal_the_reference(case: Case) -> None:
    for actual, expected in zip(*both(case), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_rows_that_see_what_comes_after_them_equal_the_reference() -> None:
    for actual, expected in zip(*both(Case([[20, 3, 70]], causal=False)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_entries_of_8_bits_are_those_of_the_reference(kv: KVType) -> None:
    case = Case([[20, 3], [1, 40]], head_size=40, rotated=10, kv=kv)
    exact = both(replace(case, kv="f16"))[1]
    for actual, expected, true in zip(*both(case), exact, strict=True):
        loss = np.linalg.norm(expected - true)
        assert loss > 1e-3 * np.linalg.norm(true)
        # a rotation that differs in its last bit may round to the next code, rarely
        assert np.linalg.norm(actual - expected) < 0.1 * loss


@pytest.mark.parametrize("window", [0, 530])
def test_a_long_context_is_spread_over_the_device_and_equals_the_reference(window: int) -> None:
    case = Case([[SPLIT + 30, 20], [1, 1], [1, 0]], heads=2, kv_heads=1, head_size=32, rotated=16)
    for actual, expected in zip(*both(replace(case, window=window)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(("first", "second"), [(SPLIT - 4, 12), (SPLIT + 7, 1)])
def test_a_row_has_the_same_bits_whoever_shares_its_step(first: int, second: int) -> None:
    """The interpreter multiplies by a library: equal bits need tiles of an equal size."""
    case = Case([[first + second]], heads=2, kv_heads=1, head_size=32, rotated=16)
    ops, buffers, weights = model(case)
    made = program(ops, buffers, 64, kv_heads=1, head_size=32)
    tokens = list(np.random.default_rng(5).integers(0, TOKENS, first + second))
    kv = KVLayout(40, 32)
    tables = np.arange(40, dtype=np.int32).reshape(2, 20)

    def last_row(beside: int) -> Float32:
        backend = cuda.load(made, weights, kv, 0)
        backend.logits(ragged_batch([(0, first)], tables[:1], kv, tokens[:first]))
        spans = [(first, second), (0, beside)] if beside else [(first, second)]
        rows = [*tokens[first:], *range(beside)]
        logits = backend.logits(ragged_batch(spans, tables[: len(spans)], kv, rows))
        return logits[second - 1 : second]

    assert np.array_equal(last_row(0), last_row(1 if second == 1 else 9))


@st.composite
def tables_of(draw: st.DrawFn, sequences: int, width: int) -> NDArray[np.int32]:
    """Block tables that begin alike, some further than others."""
    tables = np.arange(sequences * width, dtype=np.int32).reshape(sequences, -1)
    for one in range(1, sequences):
        other, alike = draw(st.integers(0, one - 1)), draw(st.integers(0, width))
        tables[one, :alike] = tables[other, :alike]
    return tables


@st.composite
def planned_batches(draw: st.DrawFn) -> tuple[Batch, int]:
    """Prefills and decodes, and the block size."""
    rows = st.one_of(st.just(1), st.just(1), st.integers(1, 90))
    spans = draw(st.lists(st.tuples(st.integers(0, 3000), rows), min_size=1, max_size=9))
    size = draw(st.sampled_from([32, 40, 500]))
    width = -(-3100 // size)
    tables = draw(tables_of(len(spans), width))
    kv = KVLayout(width * len(spans), size)
    return ragged_batch(spans, tables, kv, [0] * sum(rows for _, rows in spans)), size


@given(
    made=planned_batches(),
    tile_rows=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([0, 1, 100, 1000]),
    programs=st.sampled_from([1, 30, 1000]),
)
def test_tiles_cover_what_each_row_sees_once(
    made: tuple[Batch, int], tile_rows: int, window: int, programs: int
) -> None:
    batch, size = made
    runs = shared_runs(batch, size)
    plan = plan_tiles(batch, tile_rows, window, True, programs, runs)
    sequences = np.repeat(np.arange(len(batch.context_lengths)), np.diff(batch.row_starts))
    seen: dict[int, list[tuple[int, int]]] = {row: [] for row in range(len(sequences))}
    left: dict[int, int] = {}
    for sequence, first, rows, shared, begin, end, slot, _ in plan.tiles.tolist():
        assert 1 <= rows <= tile_rows
        places = range(first, first + rows)
        for row in plan.members[first : first + rows].tolist() if shared else places:
            seen[row].append((begin, end))
            blocks = slice(begin // size, -(-end // size))
            tables = batch.block_tables[[sequence, sequences[row]], blocks]
            assert np.array_equal(*tables)
            if slot != FINISHED:
                assert left.setdefault(int(plan.bases[row]) + slot, row) == row
    for row, position in enumerate(batch.positions.tolist()):
        parts = sorted(seen[row])
        assert parts[0][0] <= max(0, position - window + 1 if window else 0)
        assert parts[-1][1] > position
        assert all(parts[at][1] == parts[at + 1][0] for at in range(len(parts) - 1))
        assert all(begin % SPLIT == 0 for begin, _ in parts[1:])
        assert all(end - begin <= SPLIT for begin, end in parts[1:])
    assert sorted(left) == list(range(plan.partials))
    merged = {
        partial: row
        for row, first, count, _ in plan.merges.tolist()
        for partial in range(first, first + count)
    }
    assert merged == left


def test_an_empty_array_has_the_address_that_it_has_when_it_is_not() -> None:
    """A captured step keeps the addresses of the step that was captured."""
    arena = Arena(torch.device("cpu"))
    empty, some = np.zeros(0, np.int32), np.arange(3, dtype=np.int32)
    address = arena.fill({"before": some, "merges": empty})["merges"].data_ptr()
    assert address != 0
    assert arena.fill({"before": some, "merges": some})["merges"].data_ptr() == address


@pytest.mark.parametrize(
    "spans",
    [
        [(30_000, 40)] + [(1000, 1)] * 60,  # the end of a long prompt, among decodes
        [(0, 2000)] + [(9000, 1)] * 9 + [(50_000, 1)],
        [(32_767, 1)] * 40,
        [(5000, 1)],
    ],
)
def test_no_program_has_much_more_to_do_than_others(spans: list[tuple[int, int]]) -> None:
    """Programs take tile after tile: the last to end is late by little, however lengths differ."""
    programs = 33
    width = max(sum(span) for span in spans) // 32 + 1
    tables = np.arange(len(spans) * width, dtype=np.int32).reshape(len(spans), width)
    batch = ragged_batch(
        spans, tables, KVLayout(tables.size, 32), [0] * sum(rows for _, rows in spans)
    )
    tiles = plan_tiles(batch, 16, 0, True, programs).tiles
    work = [0] * programs
    for length in (tiles[:, 5] - tiles[:, 4]).tolist():
        heapq.heappush(work, heapq.heappop(work) + length)
    assert max(work) <= max(1.125 * sum(work) / programs, SPLIT)


def test_what_all_and_what_some_share_is_found() -> None:
    tables = np.arange(5 * 32, dtype=np.int32).reshape(5, 32)
    tables[[1, 3, 4], :17] = tables[0, :17]  # two splits and a block
    tables[4, :24] = tables[1, :24]  # six splits
    batch = ragged_batch([(1000, 1)] * 5, tables, KVLayout(160, 32), [0] * 5)
    found = {(frozenset(run.sequences.tolist()), *run[1:]) for run in shared_runs(batch, 32)}
    # of the six, three are whole in a context of 1001
    assert found == {(frozenset({0, 1, 3, 4}), 0, 2), (frozenset({1, 4}), 2, 3)}


@pytest.mark.parametrize(
    "case",
    [
        Case([], heads=8, kv_heads=2, head_size=32, rotated=8),
        Case([], heads=6, kv_heads=1, head_size=40, window=560, sinks=True, kv="int8", rotated=8),
        Case([], heads=4, kv_heads=1, head_size=32, cap=2.0, block_size=40, kv="fp8", rotated=8),
    ],
)
def test_rows_that_share_a_prefix_have_the_bits_they_have_alone(case: Case) -> None:
    """Four decodes have two splits in common, two of them a third; a chunk is in a step with them.

    The cache is filled beforehand, at random.
    """
    ops, buffers, weights = model(case)
    made = program(
        ops, buffers, buffers["attended"], kv_heads=case.kv_heads, head_size=case.head_size
    )
    size, width = case.block_size, 850 // case.block_size + 1
    kv = KVLayout(width * 5, size, case.kv)
    lengths = [2 * SPLIT + 9, 3 * SPLIT + 50, 2 * SPLIT + 33, 3 * SPLIT + 1, 5]
    tables = np.arange(kv.blocks, dtype=np.int32).reshape(5, width)
    tables[1:4, : -(-2 * SPLIT // size)] = tables[0, : -(-2 * SPLIT // size)]
    tables[3, : -(-3 * SPLIT // size)] = tables[1, : -(-3 * SPLIT // size)]
    backend = cuda.load(made, weights, kv, 0)
    torch.manual_seed(1)
    for entries in (backend.model.cache.keys, backend.model.cache.values):
        entries.copy_(
            torch.randint(0, 120, entries.shape) if case.kv != "f16" else torch.randn(entries.shape)
        )
    for scales in backend.model.cache.tensors[2:]:
        if scales is not None:
            scales.copy_(torch.rand(scales.shape) / 100)

    def step(*rows: int) -> list[Float32]:
        spans = [(lengths[row] - 1, 1) if row < 4 else (0, 5) for row in rows]
        tokens = [row for row in rows for _ in range(1 if row < 4 else 5)]
        logits = backend.logits(ragged_batch(spans, tables[list(rows)], kv, tokens))
        ends = np.cumsum([count for _, count in spans])
        return [logits[end - 1] for end in ends]

    for rows in ((2, 0, 3, 1), (3, 4, 1, 2)):
        for row, found in zip(rows, step(*rows), strict=True):
            alone = step(row, 4)[0] if 4 in rows else step(row)[0]
            np.testing.assert_array_equal(found, alone)
