"""What a call of the local engine has to expect, from its queue and the state of its KV cache."""

from __future__ import annotations

from headrace.runtime.request import Counters


def outlook(now: Counters, prompt_tokens: int) -> tuple[float, float] | None:
    """Seconds to the first token of a prompt that comes now, and between tokens; None until the
    engine has computed a prompt.

    A prompt is computed after those that came before it. Where sequences or their KV blocks leave
    no room for it, it also waits until as many have ended as there are in line, itself included.
    """
    if not now.prefill_token_seconds:
        return None
    blocks = -(-(prompt_tokens + 1) // max(1, now.kv_block_tokens))
    free = now.kv_blocks_total - now.kv_blocks_used
    crowded = now.waiting or now.running >= now.places or blocks > free
    wait = (now.waiting + 1) * now.turn_seconds if crowded else 0.0
    queued = now.queued_tokens * now.prefill_token_seconds
    own = prompt_tokens * now.prefill_token_seconds
    return max(wait, queued) + own + now.step_seconds, now.step_seconds
