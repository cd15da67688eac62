"""Sampling on the device, as `runtime.sampling` defines it. Nothing here waits for the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..base import Edits, Masks, SamplingRows


@dataclass(frozen=True, slots=True)
class Chosen:
    """What `Sampled` has, on the device."""

    tokens: torch.Tensor  # int64 [samples]
    logprobs: torch.Tensor  # float32 [samples]
    ranked: tuple[torch.Tensor, torch.Tensor] | None  # int64, float32; [samples, ranked]

    def parts(self) -> tuple[torch.Tensor, ...]:
        """All that there is."""
        return (self.tokens, self.logprobs, *(self.ranked or ()))


def sample(logits: torch.Tensor, rows: SamplingRows) -> Chosen:
    """Choose a token for each row of float32 logits [samples, vocabulary]."""
    edited = logits
    if rows.edits is not None:
        edited = edit(edited, rows.edits)
    if rows.masks is not None:
        edited = mask(edited, rows.masks)
    tokens = edited.argmax(dim=1)
    if rows.temperature.any():
        chosen = draw(edited, rows)
        tokens = torch.where(on(rows.temperature, logits.device) == 0, tokens, chosen)
    if (rows.target >= 0).any():
        target = on(rows.target, logits.device).long()
        tokens = torch.where(target >= 0, target, tokens)
    normaliser = logits.logsumexp(dim=1)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - normaliser
    if not rows.ranked:
        return Chosen(tokens, logprobs, None)
    order = logits.argsort(dim=1, descending=True, stable=True)[:, : rows.ranked]
    ranked = logits.gather(1, order) - normaliser[:, None]
    return Chosen(tokens, logprobs, (order, ranked))


def on(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A copy of an array of the host on the device."""
    return torch.from_numpy(np.array(array)).to(device, non_blocking=True)


def edit(logits: torch.Tensor, edits: Edits) -> torch.Tensor:
    """The logits with the rows' edits, in a copy."""
    entries = np.repeat(np.arange(len(edits.starts) - 1), np.diff(edits.starts))
    row, token = on(entries, logits.device), on(edits.tokens, logits.device).long()
    found, divisors = logits[row, token], on(edits.divisors, logits.device)
    changed = torch.where(found > 0, found / divisors, found * divisors)
    edited = logits.clone()
    edited[row, token] = changed + on(edits.addends, logits.device)
    return edited


def mask(logits: torch.Tensor, masks: Masks) -> torch.Tensor:
    """The logits with those that a grammar forbids at -inf."""
    words = on(masks.allowed.view(np.int32), logits.device)
    bits = torch.arange(32, device=logits.device, dtype=torch.int32)
    allowed = (words[:, :, None] >> bits & 1).bool().flatten(1)[:, : logits.shape[1]]
    held = on(masks.rows, logits.device)
    forbidden = ~allowed[held.clamp(min=0).long()] & (held >= 0)[:, None]
    return logits.masked_fill(forbidden, -torch.inf)


def draw(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """The token of each row at its `uniform` on the cumulative distribution; int64 [samples].

    A row of temperature 0 gives some token. Where everything is forbidden the token is 0.
    """
    device = logits.device
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    temperature = on(rows.temperature, device).clamp(min=1e-6)[:, None]
    likelihood = ((ordered - ordered[:, :1]) / temperature).double().exp()
    places = torch.arange(logits.shape[1], device=device)
    top_k = on(rows.top_k, device)[:, None]
    likelihood = likelihood.masked_fill((places >= top_k) & (top_k > 0), 0.0)
    cumulative = likelihood.cumsum(dim=1)
    top_p = on(rows.top_p, device).double()[:, None]
    reached = (cumulative < top_p * cumulative[:, -1:]).sum(dim=1) + 1
    kept = torch.where(top_p[:, 0] < 1, reached, logits.shape[1])
    min_p = on(rows.min_p, device).double()[:, None]
    likely = (likelihood >= min_p).sum(dim=1)
    kept = torch.minimum(kept, torch.where(min_p[:, 0] > 0, likely, logits.shape[1]))
    kept = torch.minimum(kept, (likelihood > 0).sum(dim=1)).clamp(min=1)
    total = cumulative.gather(1, kept[:, None] - 1)
    at = (cumulative <= on(rows.uniform, device).double()[:, None] * total).sum(dim=1)
    place = torch.minimum(at, kept - 1)
    chosen = order.gather(1, place[:, None])[:, 0]
    return torch.where(ordered[:, 0] > -torch.inf, chosen, torch.zeros_like(chosen))
