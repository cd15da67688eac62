"""Attention and what writes its KV: the launches of their kernels."""

from __future__ import annotations

import math

import numpy as np
import torch

from ...models.architecture import Rope
from ...models.program import Attention, RotateAndWrite
from .inputs import Step, View
from .kernels.attention import attend_tiles, merge_splits
from .kernels.rows import rotate_and_write
from .model import Launch, Model, chained, power
from .prefixes import SPLIT

LOG2_E = math.log2(math.e)
NEAR = 1024  # positions in the near table of angles
PROGRAMS, MERGERS = 2, 8  # programs a processor: of four warps, of one
WIDEST = 64 * 128  # values of a tile's sums for four warps
QUERY_BLOCK = {True: 64, False: 16}  # rows of a tile, by whether the step has prefill


def rotation(
    op: RotateAndWrite,
    model: Model,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    epsilon: float,
) -> Launch:
    """The launch of `kernels.rows.rotate_and_write`."""
    far, near = angles(op.rope, model)
    query, key = norms or (None, None)

    def launch(step: Step) -> None:
        rotate_and_write[(step.rows, op.heads + 2 * op.kv_heads)](
            model.buffers[op.qkv],
            *model.cache.layer(op.layer),
            step.positions,
            step.slots,
            far,
            near,
            query,
            key,
            epsilon,
            op.heads,
            op.kv_heads,
            op.head_size,
            len(op.rope.frequencies),
            NORM=norms is not None,
            INTERLEAVED=op.rope.interleaved,
            NEAR=NEAR,
            KV=model.cache.form,
            **chained(model.device),
            BLOCK=power(op.head_size),
        )

    return launch


def angles(rope: Rope, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [places, pairs, 2] of positions NEAR apart, and of those between.

    The rope's scale is in the near ones.
    """
    if rope not in model.tables:
        frequencies = np.array(rope.frequencies, np.float64)
        places = -(-model.positions // NEAR)
        found = []
        for positions, scale in ((np.arange(places) * NEAR, 1.0), (np.arange(NEAR), rope.scale)):
            turn = positions[:, None] * frequencies
            both = np.stack([np.cos(turn), np.sin(turn)], axis=2) * scale
            found.append(torch.from_numpy(both.astype(np.float32)).to(model.device))
        model.tables[rope] = (found[0], found[1])
    return model.tables[rope]


def attention(op: Attention, model: Model) -> Launch:
    """Tiles, then the merge of rows that no tile finished."""
    group = op.heads // op.kv_heads
    view = View(op.window, op.causal)
    sinks = None if op.sinks is None else model.vector(op.sinks) * LOG2_E
    block_d = power(op.head_size)

    def launch(step: Step) -> None:
        plan = step.planned[view]
        block_m = query_block(group, model.prefills)
        attend_tiles[(model.processors * PROGRAMS,)](
            model.buffers[op.out],
            model.buffers[op.qkv],
            *model.cache.layer(op.layer),
            sinks,
            model.partial_sums,
            model.partial_stats,
            plan.tiles,
            plan.members,
            plan.bases,
            plan.counts,
            step.positions,
            step.tables,
            op.scale * LOG2_E,
            op.cap * LOG2_E,
            op.kv_heads,
            op.head_size,
            GROUP=group,
            WINDOW=op.window,
            CAUSAL=op.causal,
            CAPPED=op.cap != 0,
            SINKS=sinks is not None,
            KV=model.cache.form,
            **chained(model.device),
            PAGE=model.kv.block_size,
            SPLIT=SPLIT,
            BLOCK_M=block_m,
            BLOCK_N=64 if block_d <= 128 else 32,
            BLOCK_D=block_d,
            # two sums of a tile of more do not fit the registers of four
            num_warps=8 if block_m * block_d > WIDEST else 4,
        )
        merge_splits[(model.processors * MERGERS,)](
            model.buffers[op.out],
            sinks,
            model.partial_sums,
            model.partial_stats,
            plan.merges,
            plan.counts,
            op.heads,
            op.head_size,
            SINKS=sinks is not None,
            **chained(model.device),
            BLOCK_D=block_d,
            num_warps=1,
        )

    return launch


def query_block(group: int, prefills: bool) -> int:
    """Rows of a tile: query rows times the query heads of a KV head."""
    return max(QUERY_BLOCK[prefills], power(group))
