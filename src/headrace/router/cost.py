"""What tokens cost, in dollars."""

from __future__ import annotations

from headrace.config.schema import Price
from headrace.protocol.generation import Usage

MILLION = 1_000_000


def cost(price: Price | None, usage: Usage) -> float | None:
    """Dollars for `usage`, None where the price is not known; each token is priced once."""
    if price is None:
        return None
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
