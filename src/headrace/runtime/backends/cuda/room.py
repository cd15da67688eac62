"""How many KV blocks fit: what the device has free beside the weights and the largest step.

The largest steps are run, over a cache of one block a sequence that stands for all of its blocks:
what they take is measured and not worked out, whatever kernels and libraries allocate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..base import Batch, Edits, Filling, Int32, KVLayout, Masks, SamplingRows
from .model import Model

SHARE = 0.95  # of what is free; the rest is lost between the allocator's pieces
RESERVE = 512 * 2**20  # bytes, for captured graphs, kernels compiled later and adapters
GIB = 2**30

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Meter:
    """What tells of a device's memory, in bytes."""

    free: Callable[[], int]  # on the device, whoever has taken the rest
    held: Callable[[], int]  # by this process's tensors
    peak: Callable[[], int]  # the most that was held since this was asked last


def device_meter(device: torch.device) -> Meter:
    """By the driver and torch's allocator."""

    def free() -> int:
        torch.cuda.empty_cache()  # what the allocator keeps for later counts as taken otherwise
        return torch.cuda.mem_get_info(device)[0]

    def peak() -> int:
        found = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return found

    return Meter(free, lambda: torch.cuda.memory_allocated(device), peak)


def blocks_that_fit(
    model: Model, run: Callable[[Batch], object], filling: Filling, meter: Meter
) -> int:
    """Blocks for a model whose cache is one a sequence now. Raises MemoryError where none fit."""
    kv, cache, vocabulary = model.kv, model.cache.bytes, model.program.vocabulary
    block, weights = cache // kv.blocks, meter.held() - cache
    meter.peak()
    for batch in prompt_steps(kv, filling, vocabulary):
        run(batch)
    step = meter.peak() - cache
    slots = spare(filling, meter, cache, step) // block * kv.block_size
    run(decode_step(kv, filling, vocabulary, slots))
    step = max(step, meter.peak() - cache)
    blocks = spare(filling, meter, cache, step) // block
    sizes = weights / GIB, (step - weights) / GIB
    if blocks < 1:
        raise MemoryError(
            "the weights ({:.2f} GiB) and the largest step ({:.2f} GiB) leave no room on the "
            "device for a KV cache".format(*sizes)
        )
    log.info(
        "weights %.2f GiB, the largest step %.2f GiB, KV cache %.2f GiB: %d tokens",
        *sizes,
        blocks * block / GIB,
        blocks * kv.block_size,
    )
    return blocks


def spare(filling: Filling, meter: Meter, cache: int, step: int) -> int:
    """Bytes for another cache in place of the one of `cache` bytes, beside a step that takes `step`
    bytes with the weights."""
    taken = step - (meter.held() - cache)  # for as long as the step runs
    free = int((meter.free() + cache - taken) * SHARE) - RESERVE
    return max(0, free if filling.most is None else min(free, filling.most - step))


def prompt_steps(kv: KVLayout, filling: Filling, vocabulary: int) -> Iterator[Batch]:
    """Prompts as large as a step may be, and one whose every token is scored."""
    ends = min(filling.sequences, filling.rows)
    counts = np.ones(ends, np.int32)
    counts[0] += filling.rows - ends
    yield step_of(kv, counts, counts, drawing(ends, filling.ranked, vocabulary))
    whole = np.array([filling.rows], np.int32)
    scored = drawing(filling.rows, filling.ranked, vocabulary)
    yield step_of(kv, whole, whole, replace(scored, masks=None))


def decode_step(kv: KVLayout, filling: Filling, vocabulary: int, slots: int) -> Batch:
    """As many sequences as run at once, with as many tokens as `slots` hold of them all."""
    counts = np.ones(filling.sequences, np.int32)
    length = max(1, min(slots // filling.sequences, filling.context))
    sampling = drawing(filling.sequences, filling.ranked, vocabulary)
    return step_of(kv, counts, counts * length, sampling)


def step_of(kv: KVLayout, counts: Int32, contexts: Int32, sampling: SamplingRows) -> Batch:
    """A step whose last rows are sampled, in which a block stands for all of its sequence: it
    computes nonsense of the right size."""
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    rows, widest = int(starts[-1]), -(-int(contexts.max()) // kv.block_size)
    owners = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(rows) + (contexts - counts - starts[:-1])[owners]
    samples = len(sampling.target)
    return Batch(
        tokens=np.zeros(rows, np.int32),
        positions=positions.astype(np.int32),
        slots=(owners * kv.block_size + positions % kv.block_size).astype(np.int32),
        row_starts=starts,
        context_lengths=contexts.astype(np.int32),
        block_tables=np.repeat(np.arange(len(counts), dtype=np.int32)[:, None], widest, axis=1),
        sampled_rows=np.arange(rows - samples, rows, dtype=np.int32),
        sampling=sampling,
    )


def drawing(samples: int, ranked: int, vocabulary: int) -> SamplingRows:
    """Rows that ask for all that sampling does."""
    ones, each = np.ones(samples, np.float32), np.arange(samples, dtype=np.int32)
    words = -(-vocabulary // 32)
    return SamplingRows(
        temperature=ones,
        top_k=each * 0,
        top_p=ones * np.float32(0.9),
        min_p=ones * np.float32(0.1),
        uniform=ones * np.float32(0.5),
        target=each * 0 - 1,
        ranked=ranked,
        edits=Edits(np.arange(samples + 1, dtype=np.int32), each * 0, ones, ones * 0),
        masks=Masks(each, np.full((samples, words), 2**32 - 1, np.uint32)),
    )
