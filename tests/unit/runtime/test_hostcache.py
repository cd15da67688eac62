"""KV blocks that went to host memory: whoever gets one back gets what it was, however late."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.backends.base import KVLayout
from headrace.runtime.backends.reference import ReferenceBackend
from headrace.runtime.engine import Engine
from headrace.runtime.hostcache import HostBlocks
from headrace.runtime.kvcache import BlockPool, BlockTable
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.options import EngineOptions, Limits
from headrace.runtime.request import Request, SamplingParameters
from tests.fakes.host import Link, Offloading

A, B = b"a", b"b"  # two tenants' salts
BLOCK = 8
GREEDY = SamplingParameters(temperature=0, max_tokens=6, ignore_eos=True)
LONG = "A prompt of several blocks, which others push out. "


@settings(max_examples=300)
@given(
    blocks=st.integers(2, 6),
    host_blocks=st.integers(1, 4),
    moves=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["", "xxx", "xxxxx", "xxxxxxx", "yyy", "yyyyyyy", "xxyyy", "xxyyyyy"]),
            st.sampled_from([A, A, A, B]),
            st.booleans(),
            st.integers(0, 2),
        ),
        max_size=40,
    ),
)
def test_a_step_reads_what_was_written_for_its_tokens_whatever_is_still_under_way(
    blocks: int, host_blocks: int, moves: list[tuple[int, str, bytes, bool, int]]
) -> None:
    """A model of what an engine does: `written` is what each block's slots really hold."""
    written: dict[int, Any] = {}
    link = Link(lambda block: written.get(block), written.__setitem__)
    host = HostBlocks(host_blocks, link.copy)
    pool = BlockPool(blocks, 2, host=host)
    tables = [BlockTable() for _ in range(3)]
    for owner, text, salt, runs, arrived in moves:
        pool.release(tables[owner])
        tables[owner] = table = BlockTable()
        tokens = [ord(letter) for letter in text]
        if not tokens:
            continue
        pool.share(table, tokens, salt)
        if pool.blocks_for(len(tokens)) - len(table.blocks) > pool.available:
            pool.release(table)
            continue
        held = pool.extend(table, tokens, salt, len(tokens))
        assert held < len(tokens)
        link.advance(arrived)
        host.settle()
        assert len(host.slot_of) == host.used <= host_blocks
        if not runs:  # cancelled before its first step
            continue
        host.begin(set(table.blocks))
        assert not pool.arriving(table)
        for index, block in enumerate(table.blocks[: held // 2]):
            assert written[block] == (salt, text[: 2 * (index + 1)])
        for index in range(held // 2, len(table.blocks)):
            written[table.blocks[index]] = (salt, text[: 2 * (index + 1)])
        pool.publish(table, tokens, len(tokens), salt)
    for table in tables:
        pool.release(table)
    assert pool.used == 0


@dataclass
class Device:
    """A pool with blocks in host memory, and what its blocks really hold."""

    blocks: int
    host_blocks: int

    def __post_init__(self) -> None:
        self.written: dict[int, Any] = {}
        self.link = Link(lambda block: self.written.get(block), self.written.__setitem__)
        self.host = HostBlocks(self.host_blocks, self.link.copy)
        self.pool = BlockPool(self.blocks, 2, host=self.host)

    def admit(self, text: str) -> tuple[BlockTable, int]:
        """A table for a prompt, and how many blocks of it are there or will be."""
        table, tokens = BlockTable(), [ord(letter) for letter in text]
        self.pool.share(table, tokens, A)
        return table, self.pool.extend(table, tokens, A, len(tokens)) // 2

    def compute(self, text: str) -> None:
        """A whole prompt, whose blocks are then nobody's."""
        table, held = self.admit(text)
        self.host.begin(set(table.blocks))
        full = [text[: 2 * (index + 1)] for index in range(len(table.blocks))]
        for index, block in enumerate(table.blocks):
            if index < held:
                assert self.written[block] == full[index]
            self.written[block] = full[index]
        self.pool.publish(table, [ord(letter) for letter in text], len(text), A)
        self.pool.release(table)


def test_what_comes_is_not_given_up_for_what_goes_to_make_room_for_it() -> None:
    device = Device(3, 2)
    for text in ("xxxxx", "yyyyy", "xxxxx"):  # each takes all blocks
        device.compute(text)
    assert device.host.fetched == 2


def test_a_block_that_never_came_is_not_taken_for_what_was_to_come() -> None:
    device = Device(3, 1)
    for text in ("aax", "bbbbbx"):  # the one block of the first is on the host
        device.compute(text)
    table, held = device.admit("aax")
    assert held == 1
    device.pool.release(table)  # cancelled before a step began the copy
    for text in ("cccccx", "aax", "cccccx"):
        device.compute(text)


def engine_of(
    tiny: Path, *, host_blocks: int = 64, kv_tokens: int = 96, **changes: Any
) -> tuple[Engine, Offloading]:
    """An engine on the reference, with blocks in host memory."""
    options = EngineOptions("reference", limits=Limits(16, 4), speculation=False, **changes)
    checkpoint = load_checkpoint(tiny)
    program = decoder_program(checkpoint.architecture)
    kv = KVLayout(kv_tokens // BLOCK, BLOCK)
    backend = Offloading(ReferenceBackend(program, checkpoint.weights, kv), host_blocks)
    return Engine(checkpoint, backend, options), backend


def drain(engine: Engine) -> dict[str, list[int]]:
    """Step until nothing is left: the tokens of each request."""
    found: dict[str, list[int]] = {}
    while not engine.idle:
        for output in engine.step():
            found.setdefault(output.id, []).extend(output.tokens)
    return found


@pytest.mark.parametrize("overlap", [False, True])
def test_a_prefix_that_was_pushed_out_comes_back_and_is_not_computed_again(
    tiny: Path, overlap: bool
) -> None:
    engine, backend = engine_of(tiny, overlap=overlap)
    first = engine.generate(LONG, GREEDY)
    engine.generate("x" * 80, GREEDY)  # takes all blocks
    assert engine.counters().kv_offloaded > 0
    before = backend.rows
    again = engine.generate(LONG, GREEDY)
    assert again.tokens == first.tokens
    assert again.finish.cached_tokens == (len(LONG) - 1) // BLOCK * BLOCK
    assert backend.rows - before < BLOCK + GREEDY.max_tokens  # type: ignore[operator]
    counters = engine.counters()
    assert counters.kv_fetched > 0
    assert counters.kv_blocks_used == 0


def test_another_tenant_gets_nothing_from_host_memory(tiny: Path) -> None:
    engine, _ = engine_of(tiny)
    for tenant, prompt in (("a", LONG), ("a", "x" * 80), ("b", LONG)):
        engine.submit(Request("one", prompt, GREEDY, tenant=tenant))
        drain(engine)
    assert engine.counters().kv_fetched == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_preempted_requests_go_on_without_being_computed_again(tiny: Path, overlap: bool) -> None:
    prompts = {"0": "Once upon a time", "1": "x", "2": "Tell me: "}
    long = replace(GREEDY, max_tokens=70)

    def run(host_blocks: int) -> tuple[dict[str, list[int]], int, int]:
        engine, backend = engine_of(tiny, host_blocks=host_blocks, kv_tokens=136, overlap=overlap)
        for id, prompt in prompts.items():
            engine.submit(Request(id, prompt, long))
        found = drain(engine)
        assert engine.counters().kv_blocks_used == 0
        return found, backend.rows, engine.counters().preempted

    alone = {id: engine_of(tiny)[0].generate(prompt, long) for id, prompt in prompts.items()}
    found, rows, preempted = run(64)
    assert found == {id: list(one.tokens) for id, one in alone.items()}
    assert preempted > 0
    least = sum(len(prompt) for prompt in prompts.values()) + 3 * 70
    assert rows <= least + preempted * (BLOCK + 1)
    assert run(0)[1] > rows


def test_host_memory_holds_no_more_than_its_bound(tiny: Path) -> None:
    engine, backend = engine_of(tiny, host_blocks=3)
    for letter in "abcdefgh":
        engine.generate(letter * 80, GREEDY)
        counters = engine.counters()
        assert counters.kv_host_used <= counters.kv_host_total == 3
        assert len(backend.link.host) <= 3
    assert engine.generate("a" * 80, GREEDY).tokens == engine.generate("a" * 80, GREEDY).tokens


def test_others_run_while_a_prefix_is_on_its_way(tiny: Path) -> None:
    engine, backend = engine_of(tiny, kv_tokens=160)
    expected = engine.generate(LONG, GREEDY).tokens
    engine.generate("x" * 150, GREEDY)
    other = replace(GREEDY, max_tokens=12)
    engine.submit(Request("runs", "y", other))
    engine.step()
    engine.submit(Request("comes", LONG, GREEDY))
    heard: list[str] = []
    for _ in range(5):
        heard += [output.id for output in engine.step() if output.tokens]
    assert set(heard) == {"runs"}
    assert backend.link.waiting  # it has begun, and the one that runs does not wait for it
    backend.link.advance(100)
    assert drain(engine)["comes"] == list(expected)


def test_a_request_that_is_cancelled_while_its_prefix_comes_leaves_no_trace(tiny: Path) -> None:
    engine, backend = engine_of(tiny, kv_tokens=160)
    expected = engine.generate(LONG, GREEDY).tokens
    engine.generate("x" * 150, GREEDY)
    engine.submit(Request("runs", "y", replace(GREEDY, max_tokens=30)))
    engine.step()
    engine.submit(Request("gone", LONG, GREEDY))
    for _ in range(3):
        engine.step()
    assert backend.link.waiting
    engine.cancel("gone")
    engine.submit(Request("next", "z" * 100, GREEDY))  # over the very blocks
    found = drain(engine)
    assert found["next"] == list(
        engine_of(tiny, kv_tokens=160)[0].generate("z" * 100, GREEDY).tokens
    )
    assert engine.counters().kv_blocks_used == 0
    assert engine.generate(LONG, GREEDY).tokens == expected


@pytest.mark.parametrize("busy", [False, True])
def test_where_copying_fails_prompts_are_computed_again(tiny: Path, busy: bool) -> None:
    engine, backend = engine_of(tiny, kv_tokens=160)
    expected = engine.generate(LONG, GREEDY).tokens
    engine.generate("x" * 150, GREEDY)
    if busy:
        engine.submit(Request("runs", "y", GREEDY))
        engine.step()
    backend.link.fault = MemoryError("no memory")
    engine.submit(Request("again", LONG, GREEDY))
    found = drain(engine)
    assert found["again"] == list(expected)
    assert engine.counters().kv_blocks_used == 0
    backend.link.fault = None
    assert engine.generate(LONG, GREEDY).tokens == expected


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_backend_without_a_device_refuses_to_offload(tiny: Path, backend: str) -> None:
    with pytest.raises(ValueError, match="kv_offload: expected a model on one GPU"):
        Engine.load(tiny, EngineOptions(backend, kv_offload=2**20))
