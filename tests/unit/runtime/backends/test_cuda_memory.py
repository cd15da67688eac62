"""Memory of a device: the KV cache takes what is free, and where there is none one request ends."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.runtime.backends import cuda
from headrace.runtime.backends.base import Filling, KVLayout, KVType, Move
from headrace.runtime.backends.cuda.room import RESERVE, SHARE, Meter
from headrace.runtime.engine import Engine
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.options import EngineOptions, Limits
from headrace.runtime.request import Request, RequestRefused, SamplingParameters
from tests.fakes.adapter import write_adapter
from tests.fakes.allocator import Refusing
from tests.fakes.model import HEADS, KV_HEADS, LAYERS, WIDTH, write_tiny_gguf

MIB = 2**20
WEIGHTS, STEP = 20 * MIB, 4 * MIB
FILLING = Filling(rows=4, sequences=2, context=24, ranked=2)
TOKEN = 2 * LAYERS * KV_HEADS * (WIDTH // HEADS) * 4  # bytes of KV; the interpreter has float32
FIRST = FILLING.sequences * 8 * TOKEN
GREEDY = SamplingParameters(max_tokens=2, temperature=0, ignore_eos=True)


def meter(free: int) -> Meter:
    """A device that has `free` bytes beside the weights and the first, small cache."""
    return Meter(lambda: free, lambda: WEIGHTS + FIRST, lambda: WEIGHTS + FIRST + STEP)


def filled(path: Path, filling: Filling, free: int) -> cuda.CUDABackend:
    checkpoint = load_checkpoint(path)
    kv = KVLayout(4, 8, filling=filling)
    program = decoder_program(checkpoint.architecture)
    return cuda.load(program, checkpoint.weights, kv, 0, meter=meter(free))


def test_the_cache_takes_what_is_free_beside_weights_and_step(tiny: Path) -> None:
    room = 4 * MIB + 4 * TOKEN
    free = int((RESERVE + room) / SHARE) + STEP - FIRST
    backend = filled(tiny, FILLING, free)
    assert room - 8 * TOKEN < backend.kv.blocks * 8 * TOKEN <= room
    assert backend.model.cache.bytes == backend.kv.blocks * 8 * TOKEN
    engine = Engine(load_checkpoint(tiny), backend, EngineOptions("cuda", limits=Limits(4, 2)))
    assert engine.context == 512
    with Engine.load(tiny, EngineOptions("reference", kv_tokens=64)) as other:
        assert engine.generate("once", GREEDY).tokens == other.generate("once", GREEDY).tokens
    engine.close()


def test_a_bound_on_the_model_s_memory_bounds_its_cache(tiny: Path) -> None:
    most = WEIGHTS + STEP + MIB
    backend = filled(tiny, replace(FILLING, most=most), 2 * RESERVE)
    assert MIB - 8 * TOKEN < backend.kv.blocks * 8 * TOKEN <= MIB
    backend.close()


def test_a_device_that_is_full_is_told_with_the_numbers(tiny: Path) -> None:
    with pytest.raises(MemoryError, match=r"weights \(0\.02 GiB\) and the largest step"):
        filled(tiny, FILLING, RESERVE)


def engine_of(tiny: Path, **changes: Any) -> Engine:
    settings = {"backend": "cuda", "kv_tokens": 512, "block_size": 8, "limits": Limits(128, 4)}
    return Engine.load(tiny, EngineOptions(**{**settings, "speculation": False, **changes}))


def told(engine: Engine, prompts: dict[str, str]) -> dict[str, tuple[str, list[int]]]:
    """How each request ended, and its tokens."""
    found: dict[str, list[int]] = {id: [] for id in prompts}
    ends: dict[str, str] = {}
    for id, prompt in prompts.items():
        engine.submit(Request(id, prompt, GREEDY))
    while not engine.idle:
        for output in engine.step():
            found[output.id] += output.tokens
            if output.finish is not None:
                ends[output.id] = output.finish.reason
    assert engine.counters().kv_blocks_used == 0
    return {id: (ends[id], found[id]) for id in prompts}


PROMPTS = {"one": "once upon", "two": "a"}


def reached(at: int, number: int, found: object) -> bool:
    return number == at


@pytest.fixture(scope="module")
def expected(tiny: Path) -> dict[str, tuple[str, list[int]]]:
    """What requests are told where memory never runs out."""
    with engine_of(tiny) as engine:
        return told(engine, PROMPTS)


def test_memory_that_runs_out_once_anywhere_in_a_step_changes_no_answer(
    tiny: Path, expected: dict[str, tuple[str, list[int]]]
) -> None:
    with engine_of(tiny, share_prefixes=False) as engine:
        with Refusing(lambda number, found: False) as counted:
            assert told(engine, PROMPTS) == expected
        for at in (counted.number // 4, counted.number - 9):  # in a prompt's step, in a decode's
            with Refusing(partial(reached, at)):
                assert told(engine, PROMPTS) == expected, f"operation {at}"


def test_a_request_that_never_fits_ends_alone(
    tiny: Path, expected: dict[str, tuple[str, list[int]]]
) -> None:
    def too_large(number: int, found: object) -> bool:
        return isinstance(found, torch.Tensor) and found.ndim == 2 and 64 < len(found) < 128

    with engine_of(tiny) as engine:
        with Refusing(too_large):
            found = told(engine, {**PROMPTS, "large": "x" * 90})
        assert found.pop("large") == ("error", [])
        assert found == expected


@pytest.mark.parametrize("dtype", ["f16", "int8", "fp8"])
def test_blocks_come_back_from_the_host_as_they_went(tiny: Path, dtype: KVType) -> None:
    checkpoint = load_checkpoint(tiny)
    program = decoder_program(checkpoint.architecture)
    kv = KVLayout(24, 8, dtype, host_bytes=12 * 8 * TOKEN)
    backend = cuda.load(program, checkpoint.weights, kv, 0)
    tensors = [one for one in backend.model.cache.tensors if one is not None]
    for one in tensors:
        one.copy_(torch.randint(0, 100, one.shape))
    before = [one.clone() for one in tensors]
    gone = list(range(11))  # in two chunks, to slots some of which lie side by side
    slots = [3, 4, 5, 0, 1, 9, 8, 7, 6, 2, 10]
    assert backend.host_blocks >= 12
    assert backend.copy_blocks(
        [Move(*one, out=True) for one in zip(gone, slots, strict=True)]
    ).done()
    for one in tensors:
        one.zero_()
    there = [one + 12 for one in gone]
    backend.copy_blocks([Move(*one, out=False) for one in zip(there, slots, strict=True)]).join()
    for one, old in zip(tensors, before, strict=True):
        assert torch.equal(one[:, 12 * 8 : 23 * 8], old[:, : 11 * 8])
        assert not one[:, : 12 * 8].any()
    backend.close()


def test_a_host_memory_that_holds_no_block_is_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"kv_offload: 100 bytes .* one has 4096"):
        engine_of(tiny, kv_offload=100)


def test_an_engine_with_blocks_on_the_host_says_the_same_and_computes_less(tiny: Path) -> None:
    with engine_of(tiny, kv_tokens=32, kv_offload=MIB) as engine:
        first, _, again = [engine.generate(x, GREEDY) for x in ("once upon", "y" * 26, "once upon")]
        assert again.tokens == first.tokens
        assert (first.finish.cached_tokens, again.finish.cached_tokens) == (0, 8)
        assert engine.counters().kv_fetched == 1


def large(number: int, found: object) -> bool:
    return isinstance(found, torch.Tensor) and found.nbytes > 4096


def on_device(engine: Engine) -> int:
    """Bytes of weights, cache and buffers that there are."""
    backend = engine.backend
    assert isinstance(backend, cuda.CUDABackend)
    model = backend.model
    held = [*model.cache.tensors, *model.buffers.values(), model.logits]
    held += [one for weight in model.uploaded.values() for one in weight.pointers]
    return sum(one.nbytes for one in held if one is not None)


def test_a_model_that_slept_says_what_it_said_before(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", format="Q4_1")
    with engine_of(path, kv_offload=MIB) as engine:
        engine.load_adapter("one", write_adapter(tmp_path / "adapter", seed=3))
        first, before = engine.generate("once upon", GREEDY), on_device(engine)
        for full in (False, True):
            engine.sleep()
            engine.sleep()
            assert on_device(engine) == 0
            with pytest.raises(RequestRefused, match="sleeps"):
                engine.submit(Request("early", "once", GREEDY))
            if full:
                with Refusing(large), pytest.raises(MemoryError):
                    engine.wake()
                assert on_device(engine) == 0
            engine.wake()
            assert on_device(engine) == before
        assert engine.generate("once upon", GREEDY).tokens == first.tokens
        engine.submit(Request("runs", "once", GREEDY))
        with pytest.raises(ValueError, match="requests of this model run"):
            engine.sleep()
