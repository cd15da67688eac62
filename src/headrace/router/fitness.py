"""What each model would promise a request, and whether that is within what is asked."""

from __future__ import annotations

from headrace.config.capabilities import answers
from headrace.config.schema import LOCAL, Configuration, Model, Within
from headrace.protocol.generation import Usage
from headrace.router.cost import cost
from headrace.router.facts import UNSAID, Facts
from headrace.router.plan import Attempt, Snapshot, host_of


def promised(
    name: str, configuration: Configuration, facts: Facts, snapshot: Snapshot, reason: str
) -> Attempt:
    """The attempt at model `name`, with its predictions."""
    model = configuration.models[name]
    speed = snapshot.speeds.get(host_of(model.provider, model.upstream))
    rates, tokens = model.rates, facts.prompt_tokens
    return Attempt(
        model=name,
        provider=model.provider,
        upstream_model=model.upstream,
        reason=reason,
        ttft=None if speed is None else speed.ttft,
        itl=None if speed is None else speed.itl,
        cost=cost(rates, _most(facts, model)),
        prompt_cost=cost(rates, Usage(tokens, 0)),
    )


def _most(facts: Facts, model: Model) -> Usage:
    """The most that the request is taken to use."""
    return Usage(
        facts.prompt_tokens,
        answer_tokens(facts, model),
        images=facts.pictures,
        seconds=facts.seconds,
        characters=facts.characters,
    )


def answer_tokens(facts: Facts, model: Model) -> int:
    """The most tokens that an answer is taken to have."""
    most = UNSAID if model.max_output is None else model.max_output
    if facts.max_tokens is None:
        return most
    return facts.max_tokens if model.max_output is None else min(facts.max_tokens, most)


def incapable(model: Model, configuration: Configuration, facts: Facts) -> str | None:
    """What the request, or whoever pays for it, needs that the model does not have; None where it
    has all that is known."""
    if not answers(model, configuration, facts.endpoint):
        return f"it has no {facts.endpoint} endpoint"
    for asked, has, ability in (
        (facts.tools, model.tools, "use tools"),
        (facts.images, model.images, "see images"),
        (facts.audio, model.audio, "hear audio"),
        (facts.json_schema, model.json_schema, "hold to a JSON schema"),
        (facts.reasoning, model.reasoning, "reason"),
    ):
        if asked and has is False:
            return f"it cannot {ability}"
    if model.context is not None:
        needed = facts.prompt_tokens + (facts.max_tokens or 0)
        if needed > model.context:
            return f"its context of {model.context} tokens is too short for about {needed}"
    if facts.budgeted and cost(model.rates, _most(facts, model)) is None:
        return "its price is not known, so a key with a budget cannot pay for it"
    return None


def outside(
    attempt: Attempt, within: Within, configuration: Configuration, snapshot: Snapshot
) -> str | None:
    """Which requirement of the rule the model does not meet; None where it meets all."""
    if within.max_cost is not None:
        if attempt.cost is None:
            return "its price is not known, so neither is whether it is within max_cost"
        if attempt.cost > within.max_cost:
            return f"it may cost ${attempt.cost:.6f}, over max_cost ${within.max_cost:g}"
    if within.quality_over is not None:
        quality = quality_of(attempt.model, configuration, snapshot)
        if quality is None:
            return "its quality is not known"
        if quality <= within.quality_over:
            return f"its quality {quality:.3f} is not over {within.quality_over:g}"
    if within.regions:
        region = region_of(attempt.provider, configuration)
        if region not in within.regions:
            return f"its region is {region or 'not known'}, not {' or '.join(within.regions)}"
    return None


def slow(attempt: Attempt, within: Within) -> str | None:
    """Which latency wish is predicted to break; None where none is, or nothing is known."""
    if within.ttft_under is not None and (attempt.ttft or 0.0) > within.ttft_under:
        return f"predicted TTFT {attempt.ttft:.3f} s is over {within.ttft_under:g} s"
    if within.itl_under is not None and (attempt.itl or 0.0) > within.itl_under:
        return f"predicted ITL {attempt.itl:.4f} s is over {within.itl_under:g} s"
    return None


def quality_of(name: str, configuration: Configuration, snapshot: Snapshot) -> float | None:
    """The measured quality, else what the file says."""
    return snapshot.quality.get(name, configuration.models[name].quality)


def region_of(provider: str, configuration: Configuration) -> str | None:
    """Where a provider is; our own engine is `local`."""
    return LOCAL if provider == LOCAL else configuration.providers[provider].region


def seconds_of(attempt: Attempt, tokens: int) -> float:
    """Predicted seconds of a whole answer of `tokens`; 0 where nothing is known yet."""
    return (attempt.ttft or 0.0) + (attempt.itl or 0.0) * tokens
