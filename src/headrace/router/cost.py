"""What tokens, images and sound cost, in dollars."""

from __future__ import annotations

from headrace.config.schema import Price
from headrace.protocol.generation import Usage

MILLION = 1_000_000


def cost(price: Price | None, usage: Usage) -> float | None:
    """Dollars for `usage`, None where the price of something in it, or how much it was, is not
    known; each token is priced once."""
    if price is None or usage.provenance == "unknown":
        return None
    if not _counted(usage):
        return _tokens(price, usage)
    if usage.prompt_tokens or usage.completion_tokens:
        return _tokens(price, usage) + (_pieces(price, usage) or 0.0)
    return _pieces(price, usage)


def _counted(usage: Usage) -> bool:
    return bool(usage.images or usage.seconds or usage.characters)


def _pieces(price: Price, usage: Usage) -> float | None:
    """What has no tokens; None where one of its prices is not known."""
    total = 0.0
    for much, each in (
        (usage.images, price.image),
        (usage.seconds / 60, price.minute),
        (usage.characters / MILLION, price.characters),
    ):
        if much and each is None:
            return None
        total += much * (each or 0.0)
    return total


def _tokens(price: Price, usage: Usage) -> float:
    plain = price.input or 0.0
    cached_price = plain if price.cached_input is None else price.cached_input
    write_price = plain if price.cache_write is None else price.cache_write
    long_price = write_price if price.cache_write_1h is None else price.cache_write_1h
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    written = min(usage.cache_write_tokens, usage.prompt_tokens - cached)
    long = min(usage.cache_write_1h_tokens, written)
    return (
        (usage.prompt_tokens - cached - written) * plain
        + cached * cached_price
        + (written - long) * write_price
        + long * long_price
        + usage.completion_tokens * (price.output or 0.0)
    ) / MILLION
