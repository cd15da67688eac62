"""Mixture of experts: the choice, the pairs in tiles, three products, the weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...models.program import MixExperts
from .kernels.experts import project_pairs
from .kernels.rows import gate_rows
from .products import BLOCK_K
from .weights import DeviceWeight

ROWS, BLOCK_N = 16, 64
GATE_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of (row, chosen expert), number row · chosen + choice, sorted by expert, in tiles."""

    shares: torch.Tensor  # [rows, chosen] float32
    order: torch.Tensor  # [pairs] int32, the pairs' numbers
    starts: torch.Tensor  # [tiles] int32, places in `order`
    ends: torch.Tensor  # [tiles] int32; not above its start where the tile is not needed
    experts: torch.Tensor  # [tiles] int32


def choose(
    op: MixExperts, source: torch.Tensor, router: torch.Tensor, bias: torch.Tensor | None
) -> Pairs:
    """The best experts of each row, the lowest index among equals."""
    scores = source.float() @ router.T
    if bias is not None:
        scores = scores + bias
    ranked, experts = scores.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    shares, experts = ranked[:, : op.chosen], experts[:, : op.chosen]
    if op.normalized:
        shares = shares / shares.sum(dim=1, keepdim=True)
    return Pairs(shares, *order_pairs(experts.flatten(), len(op.gate)))


def order_pairs(
    chosen: torch.Tensor, experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Order, starts, ends and experts of `Pairs`, of `chosen` [pairs], each pair's expert.

    There are as many tiles as there can be at most: one for each ROWS pairs, and one more for
    each expert that may be chosen.
    """
    order = chosen.argsort(stable=True)
    counts = torch.zeros(experts, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen))
    ends = counts.cumsum(0)
    tiles = (counts + ROWS - 1) // ROWS
    last_tiles = tiles.cumsum(0)
    most = len(chosen) // ROWS + min(experts, len(chosen))
    tile = torch.arange(most, device=chosen.device)
    expert = torch.searchsorted(last_tiles, tile, right=True)
    there = expert < experts
    expert = expert.clamp(max=experts - 1)
    first = (ends - counts)[expert] + (tile - (last_tiles - tiles)[expert]) * ROWS
    begin = torch.where(there, first, 0)
    end = torch.where(there, torch.minimum(first + ROWS, ends[expert]), 0)
    return order.int(), begin.int(), end.int(), expert.int()


def project(
    weight: DeviceWeight,
    bias: torch.Tensor | None,
    pairs: Pairs,
    source: torch.Tensor,
    shared: int,
    experts: int,
) -> torch.Tensor:
    """[pairs, outputs of one expert]; pair p reads row p // shared of `source`."""
    outputs = weight.outputs // experts
    out = source.new_empty((len(pairs.order), outputs))
    project_pairs[(-(-outputs // BLOCK_N), len(pairs.starts))](
        out,
        source,
        *weight.pointers,
        bias,
        pairs.order,
        pairs.starts,
        pairs.ends,
        pairs.experts,
        outputs,
        weight.inputs,
        shared,
        **weight.form,
        BIAS=bias is not None,
        ROWS=ROWS,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K[weight.kind],
    )
    return out


@dataclass(frozen=True, slots=True)
class Experts:
    """The weights of one mixture, those of all experts on top of each other."""

    router: torch.Tensor
    router_bias: torch.Tensor | None
    gate_up: DeviceWeight  # of each expert the gate's rows, then the up's
    gate_up_bias: torch.Tensor | None
    down: DeviceWeight
    down_bias: torch.Tensor | None


def mix(op: MixExperts, weights: Experts, source: torch.Tensor) -> torch.Tensor:
    """`program.MixExperts` of the rows."""
    experts = len(op.gate)
    pairs = choose(op, source, weights.router, weights.router_bias)
    both = project(weights.gate_up, weights.gate_up_bias, pairs, source, op.chosen, experts)
    width = both.shape[1] // 2
    gated = both.new_empty((len(both), width))
    gate_rows[(len(both), -(-width // GATE_BLOCK))](
        gated, both, width, KIND=op.activation, CHAINED=False, BLOCK=GATE_BLOCK
    )
    down = project(weights.down, weights.down_bias, pairs, gated, 1, experts)
    parts = down.view(len(source), op.chosen, -1)
    return (parts.float() * pairs.shares[..., None]).sum(dim=1)
