"""A step is launched, told how it chooses, and waited for: the same of every backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from headrace.runtime.backends import choice, cpu
from headrace.runtime.backends.base import Backend, Batch, KVLayout, Masks
from headrace.runtime.weights.lowrank import LowRank
from tests.fakes.programs import flat_batch, greedy, linear_program, tensor

SIZE = 32
NEXT = np.random.default_rng(0).permutation(SIZE)  # the token that follows each
KV = KVLayout(4, 32)


def loaded(name: str, threads: int = 2) -> Backend:
    """A model that follows each token with its `NEXT`."""
    matrix = np.zeros((SIZE, SIZE), np.float32)
    matrix[NEXT, np.arange(SIZE)] = 1.0
    made, weights = linear_program({"w": tensor(matrix)})
    weights["table"] = tensor(np.eye(SIZE, dtype=np.float32))
    return choice.choose(name)(made, weights, KV, threads)


@pytest.fixture(params=["reference", "cpu", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    found = loaded(request.param)
    yield found
    found.close()


def open_batch(tokens: list[int]) -> Batch:
    """A batch that does not say how tokens are chosen."""
    return replace(flat_batch(tokens), sampling=None)


def carrying(samples: list[int]) -> Batch:
    """A batch of tokens that samples of the step before choose; -1: of token 0."""
    return replace(flat_batch([0] * len(samples)), carried=np.array(samples, np.int32))


def test_a_step_goes_on_with_tokens_that_the_host_has_not_seen(backend: Backend) -> None:
    first = backend.launch(flat_batch([3, 4, 5]))
    second = backend.launch(carrying([2, -1, 0]), first)
    third = backend.launch(carrying([0, 1]), second)
    expected = [NEXT[NEXT[5]], NEXT[0], NEXT[NEXT[3]]]
    assert third.wait().tokens.tolist() == [NEXT[one] for one in expected[:2]]
    assert second.wait().tokens.tolist() == expected
    assert first.wait().tokens.tolist() == NEXT[[3, 4, 5]].tolist()


def test_how_tokens_are_chosen_may_be_said_while_the_step_runs(backend: Backend) -> None:
    pending = backend.launch(open_batch([1, 2]))
    masks = np.zeros((1, 1), np.uint32)
    masks[0, 0] = 1 << 7  # only token 7
    pending.choose(replace(greedy(2), masks=Masks(np.array([-1, 0], np.int32), masks), ranked=3))
    sampled = pending.wait()
    assert sampled.tokens.tolist() == [NEXT[1], 7]
    assert sampled.ranked_tokens is not None
    assert sampled.ranked_tokens.shape == (2, 3)
    assert sampled.ranked_tokens[:, 0].tolist() == NEXT[[1, 2]].tolist()
    assert sampled.seconds > 0


def test_a_step_that_never_learns_how_it_chooses_holds_up_nothing(backend: Backend) -> None:
    lost = backend.launch(open_batch([1]))
    assert backend.run(flat_batch([2])).tokens.tolist() == [NEXT[2]]
    with pytest.raises(ValueError, match="how its tokens are chosen"):
        lost.wait()
    backend.launch(open_batch([1]))  # and close ends this one


@pytest.mark.parametrize("threads", [1, 3])
def test_bad_sampling_of_a_running_step_is_refused_and_the_next_step_runs(threads: int) -> None:
    backend = loaded("cpu", threads)
    pending = backend.launch(open_batch([1, 2]))
    with pytest.raises(ValueError, match="sampling has 1 values, expected 2"):
        pending.choose(greedy(1))
    with pytest.raises(ValueError, match="how its tokens are chosen"):
        pending.wait()
    with pytest.raises(ValueError, match="how its tokens are chosen"):
        pending.choose(greedy(2))
    assert backend.run(flat_batch([2])).tokens.tolist() == [NEXT[2]]
    backend.close()


def test_an_adapter_comes_and_goes_between_two_launches() -> None:
    """Nothing that a step reads is taken from it: whoever takes it waits for the end."""
    backend = loaded("cpu")
    more = LowRank(np.ones((1, SIZE), np.float32), np.eye(SIZE, dtype=np.float32)[:, 9:10], 5.0)
    for _ in range(100):
        backend.load_adapter(3, {"w": more})
        held = replace(flat_batch([1, 1]), adapters=np.array([3, -1], np.int32))
        pending = backend.launch(held)
        backend.drop_adapter(3)
        assert pending.wait().tokens.tolist() == [9, NEXT[1]]
    backend.close()


def test_steps_of_several_threads_take_turns() -> None:
    backend = loaded("cpu")
    wrong: list[int] = []

    def call(token: int) -> None:
        for _ in range(100):
            pending = backend.launch(open_batch([token]))
            try:
                pending.choose(greedy(1))
                if pending.wait().tokens.tolist() != [NEXT[token]]:
                    wrong.append(token)
            except ValueError:
                continue  # another's launch came between: this step is lost, and says so

    callers = [threading.Thread(target=call, args=(token,)) for token in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    backend.close()


def test_a_step_that_nobody_waits_for_uses_no_processor_time_once_it_is_done() -> None:
    backend = loaded("cpu", 4)
    launched = [backend.launch(flat_batch([1])), backend.launch(open_batch([1]))]
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
    assert launched[0].wait().tokens.tolist() == [NEXT[1]]
    backend.close()
    assert isinstance(backend, cpu.CPUBackend)
    with pytest.raises(ValueError, match="how its tokens are chosen"):
        launched[1].wait()
