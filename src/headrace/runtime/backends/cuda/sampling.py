"""Sampling on the device, as `runtime.sampling` defines it. Nothing here waits for the device.

What rows ask for goes there by one copy, what was chosen comes back by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..base import Float32, Int32, SamplingRows


@dataclass(frozen=True, slots=True)
class Chosen:
    """What `Sampled` has, on the device."""

    tokens: torch.Tensor  # int64 [samples]
    logprobs: torch.Tensor  # float32 [samples]
    ranked: tuple[torch.Tensor, torch.Tensor] | None  # int64, float32; [samples, ranked]

    def packed(self) -> torch.Tensor:
        """All of it, int32 [samples, 2 + 2 ranked]; of floats the bits."""
        tokens, logprobs = self.tokens[:, None], self.logprobs[:, None]
        if self.ranked is not None:
            tokens = torch.cat([tokens, self.ranked[0]], dim=1)
            logprobs = torch.cat([logprobs, self.ranked[1]], dim=1)
        return torch.cat([tokens.int(), logprobs.view(torch.int32)], dim=1)


def unpacked(found: Int32) -> tuple[Int32, Float32, Int32 | None, Float32 | None]:
    """The first fields of `Sampled`, from what `Chosen.packed` was copied to."""
    width = found.shape[1] // 2
    tokens = found[:, :width]
    logprobs = np.ascontiguousarray(found[:, width:]).view(np.float32)
    if width == 1:
        return tokens[:, 0].copy(), logprobs[:, 0].copy(), None, None
    return tokens[:, 0].copy(), logprobs[:, 0].copy(), tokens[:, 1:].copy(), logprobs[:, 1:].copy()


def sample(logits: torch.Tensor, rows: SamplingRows) -> Chosen:
    """Choose a token for each row of float32 logits [samples, vocabulary]."""
    asked = upload(rows, logits.device)
    edited = logits
    if rows.edits is not None:
        edited = edit(edited, asked)
    if rows.masks is not None:
        edited = mask(edited, asked)
    tokens = edited.argmax(dim=1)
    if rows.temperature.any():
        tokens = torch.where(asked["temperature"] == 0, tokens, draw(edited, asked))
    if (rows.target >= 0).any():
        target = asked["target"].long()
        tokens = torch.where(target >= 0, target, tokens)
    normaliser = logits.logsumexp(dim=1)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - normaliser
    if not rows.ranked:
        return Chosen(tokens, logprobs, None)
    order = logits.argsort(dim=1, descending=True, stable=True)[:, : rows.ranked]
    ranked = logits.gather(1, order) - normaliser[:, None]
    return Chosen(tokens, logprobs, (order, ranked))


def upload(rows: SamplingRows, device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays of the rows, their edits and their masks on the device, by one copy."""
    arrays: dict[str, NDArray[np.generic]] = {
        name: getattr(rows, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "uniform", "target")
    }
    if rows.edits is not None:
        starts = rows.edits.starts
        arrays["rows"] = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
        arrays |= {name: getattr(rows.edits, name) for name in ("tokens", "divisors", "addends")}
    if rows.masks is not None:
        arrays |= {"masked": rows.masks.rows, "allowed": rows.masks.allowed}
    size = sum(array.size for array in arrays.values())
    flat = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda")
    parts = [array.ravel().view(np.int32) for array in arrays.values()]
    np.concatenate(parts, out=flat.numpy())
    sizes = [len(part) for part in parts]
    there = torch.split(flat.to(device, non_blocking=True), sizes)
    return {
        name: (part.view(torch.float32) if array.dtype == np.float32 else part).view(array.shape)
        for (name, array), part in zip(arrays.items(), there, strict=True)
    }


def edit(logits: torch.Tensor, asked: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits with the rows' edits, in a copy."""
    row, token, divisors = asked["rows"].long(), asked["tokens"].long(), asked["divisors"]
    found = logits[row, token]
    changed = torch.where(found > 0, found / divisors, found * divisors)
    edited = logits.clone()
    edited[row, token] = changed + asked["addends"]
    return edited


def mask(logits: torch.Tensor, asked: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits with those that a grammar forbids at -inf."""
    words, held = asked["allowed"], asked["masked"]
    bits = torch.arange(32, device=logits.device, dtype=torch.int32)
    allowed = (words[:, :, None] >> bits & 1).bool().flatten(1)[:, : logits.shape[1]]
    forbidden = ~allowed[held.clamp(min=0).long()] & (held >= 0)[:, None]
    return logits.masked_fill(forbidden, -torch.inf)


def draw(logits: torch.Tensor, asked: dict[str, torch.Tensor]) -> torch.Tensor:
    """The token of each row at its `uniform` on the cumulative distribution; int64 [samples].

    A row of temperature 0 gives some token. Where everything is forbidden the token is 0.
    """
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    temperature = asked["temperature"].clamp(min=1e-6)[:, None]
    likelihood = ((ordered - ordered[:, :1]) / temperature).double().exp()
    places = torch.arange(logits.shape[1], device=logits.device)
    top_k = asked["top_k"][:, None]
    likelihood = likelihood.masked_fill((places >= top_k) & (top_k > 0), 0.0)
    cumulative = likelihood.cumsum(dim=1)
    top_p = asked["top_p"].double()[:, None]
    reached = (cumulative < top_p * cumulative[:, -1:]).sum(dim=1) + 1
    kept = torch.where(top_p[:, 0] < 1, reached, logits.shape[1])
    min_p = asked["min_p"].double()[:, None]
    likely = (likelihood >= min_p).sum(dim=1)
    kept = torch.minimum(kept, torch.where(min_p[:, 0] > 0, likely, logits.shape[1]))
    kept = torch.minimum(kept, (likelihood > 0).sum(dim=1)).clamp(min=1)
    total = cumulative.gather(1, kept[:, None] - 1)
    at = (cumulative <= asked["uniform"].double()[:, None] * total).sum(dim=1)
    place = torch.minimum(at, kept - 1)
    chosen = order.gather(1, place[:, None])[:, 0]
    return torch.where(ordered[:, 0] > -torch.inf, chosen, torch.zeros_like(chosen))
