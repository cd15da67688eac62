"""RoPE frequencies with every scaling scheme that config.json knows.

Each scheme takes what config.json says of it and gives the angles per position of the rotated
pairs, and the factor that rotated values are multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..weights.gguf import WeightsError
from .architecture import Rope
from .fields import Fields, UnsupportedModel

Angles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Lengths in tokens: what the model is described for, and what it will be asked for."""

    trained: int
    served: int


def frequencies(theta: float, pairs: int) -> Angles:
    """Angle per position of each rotated pair, radians: theta^(-i / pairs)."""
    return theta ** (-np.arange(pairs) / pairs)


def plain(settings: Fields, theta: float, pairs: int, span: Span) -> tuple[Angles, float]:
    """No scaling. "dynamic" is the same within the trained length, and no more is served."""
    settings.ignore("factor")
    return frequencies(theta, pairs), 1.0


def linear(settings: Fields, theta: float, pairs: int, span: Span) -> tuple[Angles, float]:
    """Positions are divided by the factor."""
    return frequencies(theta, pairs) / float(settings.need("factor")), 1.0


def llama3(settings: Fields, theta: float, pairs: int, span: Span) -> tuple[Angles, float]:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a ramp between."""
    angles = frequencies(theta, pairs)
    low, high = settings.need("low_freq_factor"), settings.need("high_freq_factor")
    original = settings.get("original_max_position_embeddings") or span.trained
    turns = original * angles / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return angles * (kept + (1 - kept) / float(settings.need("factor"))), 1.0


def yarn(settings: Fields, theta: float, pairs: int, span: Span) -> tuple[Angles, float]:
    """YaRN (arXiv 2309.00071): a ramp over the pairs between stretched and kept frequencies."""
    original = settings.get("original_max_position_embeddings") or span.trained
    factor = settings.get("factor") or span.trained / original
    factor = float(factor)
    edges = [
        pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)
        for turns in (settings.get("beta_fast") or 32, settings.get("beta_slow") or 1)
    ]
    if settings.get("truncate", True):
        edges = [math.floor(edges[0]), math.ceil(edges[1])]
    low, high = max(edges[0], 0), min(edges[1], 2 * pairs - 1)
    stretched = np.clip((np.arange(pairs) - low) / ((high - low) or 0.001), 0.0, 1.0)
    angles = frequencies(theta, pairs)

    def attention(strength: float) -> float:
        return 0.1 * strength * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = settings.get("attention_factor")
    one, all_dimensions = settings.get("mscale"), settings.get("mscale_all_dim")
    if scale is None and one and all_dimensions:
        scale = attention(one) / attention(all_dimensions)
    elif scale is None:
        scale = attention(1.0)
    return angles * (1 - stretched + stretched / factor), float(scale)


def longrope(settings: Fields, theta: float, pairs: int, span: Span) -> tuple[Angles, float]:
    """LongRoPE (arXiv 2402.13753): a divisor a pair, from one of two lists.

    A key is rotated once, when it is written, so one list holds for all of a model's life: the
    short one where no sequence will be longer than the original length, else the long one.
    """
    original = settings.need("original_max_position_embeddings")
    lists = settings.need("short_factor"), settings.need("long_factor")
    divisors = np.array(lists[span.served > original], np.float64)
    if divisors.shape != (pairs,):
        raise UnsupportedModel(f"{len(divisors)} longrope factors for {pairs} rotated pairs")
    factor = settings.get("factor") or span.trained / original
    scale = settings.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return frequencies(theta, pairs) / divisors, float(scale)


def divided(settings: Fields, theta: float, pairs: int, span: Span) -> tuple[Angles, float]:
    """A divisor a pair: how GGUF files store llama3's scheme."""
    settings.ignore("factor")
    divisors = np.array(settings.need("divisors"), np.float64)
    if divisors.shape != (pairs,):
        raise UnsupportedModel(f"{len(divisors)} divisors for {pairs} rotated pairs")
    return frequencies(theta, pairs) / divisors, 1.0


SCHEMES: Mapping[str, Callable[[Fields, float, int, Span], tuple[Angles, float]]] = {
    "default": plain,
    "dynamic": plain,
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
    "divided": divided,
}


def rope_of(
    config: Fields,
    head_size: int,
    served: int,
    kind: str = "",
    theta_field: str = "rope_theta",
    theta: float = 10_000.0,
) -> Rope:
    """The rotation that config.json describes; of layers of one `kind` where it names several.

    `theta_field` is what a config.json of before `rope_parameters` calls the theta of this kind,
    `theta` its default. Raises UnsupportedModel on a scheme that is not known.
    """
    settings = settings_of(config, kind, theta_field, theta)
    scheme = settings.get("rope_type") or settings.get("type") or "default"
    settings.ignore("type", "original_max_position_embeddings")
    if scheme == "su":  # Phi-3's first name for longrope
        scheme = "longrope"
    if scheme not in SCHEMES:
        raise UnsupportedModel(f"RoPE scaling '{scheme}'; known: {', '.join(SCHEMES)}")
    theta = float(settings.need("rope_theta"))
    pairs = int(head_size * (settings.get("partial_rotary_factor") or 1.0)) // 2
    trained = config.need("max_position_embeddings")
    span = Span(trained, min(served or trained, trained))
    with np.errstate(all="ignore"):
        angles, scale = SCHEMES[scheme](settings, theta, pairs, span)
    settings.refuse_unread()
    if not np.isfinite(angles).all() or not math.isfinite(scale):
        raise WeightsError(
            f"RoPE with base {theta} and scaling {settings.values} has no frequencies"
        )
    return Rope(tuple(angles.tolist()), interleaved=False, scale=scale)


def settings_of(config: Fields, kind: str, theta_field: str, theta: float) -> Fields:
    """What config.json says of RoPE in one record, in the names of `rope_parameters`."""
    found: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        found |= config.get(name) or {}
    if kind in found:
        found = found[kind]
    elif kind == "sliding_attention":  # before rope_parameters, scaling was for the others
        found = {}
    found = dict(found)
    for name, value in (
        ("rope_theta", config.get(theta_field, theta)),
        ("partial_rotary_factor", config.get("partial_rotary_factor")),
    ):
        found.setdefault(name, value)
    original = config.get("original_max_position_embeddings")
    if original is not None:
        found["original_max_position_embeddings"] = original
    return Fields(found, "config.json's rope_parameters")
