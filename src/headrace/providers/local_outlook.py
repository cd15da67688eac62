"""What a call of the local engine has to expect, from its queue and the state of its KV cache."""

from __future__ import annotations

from headrace.runtime.request import Counters


def outlook(now: Counters, prompt_tokens: int) -> tuple[float, float] | None:
    """Seconds to the first token of a prompt that comes now, and between tokens; None until the
    engine has computed a prompt.

    A prompt is computed after the step that runs and those of its size and smaller ones, beside
    sequences that decode in chunks, each of which takes a step of theirs too. Where sequences or
    their KV blocks leave no room for it, it also waits until as many have ended as are in line
    before it, and one more.
    """
    if not now.prefill_token_seconds:
        return None
    blocks = -(-(prompt_tokens + 1) // max(1, now.kv_block_tokens))
    free = now.kv_blocks_total - now.kv_blocks_used
    crowded = now.waiting or now.running >= now.places or blocks > free
    before = sum(now.queued[: prompt_tokens.bit_length() + 1])
    line = now.waiting * before / max(1, now.queued_tokens)
    wait = (line + 1) * now.turn_seconds if crowded else 0.0
    token = now.prefill_token_seconds
    if now.running and now.chunk_tokens:
        token += now.step_seconds / now.chunk_tokens
    step = now.step_seconds + min(now.chunk_tokens, now.queued_tokens) * now.prefill_token_seconds
    return max(wait, before * token) + prompt_tokens * token + step, now.step_seconds
