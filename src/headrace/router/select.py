"""From facts to a plan: a pure function of facts, rules and snapshot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b

from msgspec.structs import replace

from headrace.config.schema import Configuration, Route
from headrace.protocol.errors import NoModelFits
from headrace.router.facts import UNSAID, Facts
from headrace.router.fitness import incapable, outside, promised, quality_of, seconds_of, slow
from headrace.router.plan import Attempt, Plan, Skipped, Snapshot
from headrace.router.rules import Rule, Rulebook

USUAL_ANSWER = 256  # tokens by which two speeds are compared, where a request allows as many


def plan(facts: Facts, rules: Rulebook, version: str, snapshot: Snapshot) -> Plan:
    """Decide which models to try, in order; see `choose`.

    Raises ModelNotFound, with the names that exist, if neither a route nor a model fits.
    """
    return choose(rules.find(facts), facts, rules.configuration, version, snapshot)


def choose(
    rule: Rule, facts: Facts, configuration: Configuration, version: str, snapshot: Snapshot
) -> Plan:
    """The plan of `rule`.

    Models that cannot do what is asked, or do not meet the rule's requirements, are left out. Of
    the rest, those predicted to be slower than the rule wishes, and those that are not well, are
    left out unless that would leave none: a slim chance is better than none.

    Raises NoModelFits, with each model's reason, where no model can.
    """
    route = rule.route
    skipped: list[Skipped] = []
    able = []
    for name, reason in rule.reasons.items():
        attempt = promised(name, configuration, facts, snapshot, reason)
        fault = incapable(configuration.models[name], configuration, facts) or outside(
            attempt, route.within, configuration, snapshot
        )
        if fault is None:
            able.append(attempt)
        else:
            skipped.append(Skipped(name, attempt.provider, fault))
    if not able:
        raise NoModelFits(facts.model, [f"'{s.model}': {s.reason}" for s in skipped])
    ordered = _ordered(route, able, facts, configuration, snapshot)
    if route.within.ttft_under is not None or route.within.itl_under is not None:
        ordered = _by_speed(route, ordered, skipped)
    return Plan(
        route=route.name,
        version=version,
        attempts=_by_health(ordered, snapshot.cooling, skipped),
        skipped=tuple(skipped),
        conduct=rule.conduct,
    )


def _ordered(
    route: Route,
    able: list[Attempt],
    facts: Facts,
    configuration: Configuration,
    snapshot: Snapshot,
) -> list[Attempt]:
    """The order in which the rule wants them; those of `then` stay behind."""
    if route.attempts:
        return able
    first = [attempt for attempt in able if attempt.model not in route.then]
    last = [attempt for attempt in able if attempt.model in route.then]
    if route.split:
        sticky = facts.headers.get((route.sticky or "").lower(), facts.sticky)
        first.sort(key=lambda attempt: _turn(route, attempt.model, sticky))
    elif route.cheapest:
        first.sort(key=_dollars)
    elif route.fastest:
        tokens = min(UNSAID if facts.max_tokens is None else facts.max_tokens, USUAL_ANSWER)
        first.sort(key=lambda attempt: seconds_of(attempt, tokens))
    else:
        first.sort(key=lambda attempt: _merit(attempt, configuration, snapshot))
    return first + last


def _turn(route: Route, model: str, sticky: str) -> float:
    """The place of one arm for one caller: weighted rendezvous hashing, the least wins.

    So an arm that is added, removed or ill moves only the callers that it wins or loses.
    (Thaler and Ravishankar 1998; the weights as in Schindelhauer and Schomaker 2005.)
    """
    digest = blake2b(f"{route.name}\0{model}\0{sticky}".encode(), digest_size=8).digest()
    share = (int.from_bytes(digest, "big") + 0.5) / 2.0**64
    return -math.log(share) / route.split[model]


def _merit(
    attempt: Attempt, configuration: Configuration, snapshot: Snapshot
) -> tuple[float, float]:
    quality = quality_of(attempt.model, configuration, snapshot)
    return (1.0 if quality is None else -quality, _dollars(attempt))


def _dollars(attempt: Attempt) -> float:
    """What it may cost; a price that is not known stands behind all that are."""
    return math.inf if attempt.cost is None else attempt.cost


def _by_speed(route: Route, ordered: list[Attempt], skipped: list[Skipped]) -> list[Attempt]:
    """Without those predicted to be too slow, unless all are."""
    faults = {attempt.model: slow(attempt, route.within) for attempt in ordered}
    if all(faults.values()):
        ranked = sorted(ordered, key=lambda attempt: seconds_of(attempt, USUAL_ANSWER))
        return [
            replace(a, reason=f"{a.reason}; tried although {faults[a.model]}, as all are slow")
            for a in ranked
        ]
    skipped += [
        Skipped(attempt.model, attempt.provider, fault)
        for attempt in ordered
        if (fault := faults[attempt.model]) is not None
    ]
    return [attempt for attempt in ordered if faults[attempt.model] is None]


def _by_health(
    ordered: list[Attempt], cooling: Mapping[str, str], skipped: list[Skipped]
) -> tuple[Attempt, ...]:
    """Without those that are not well, unless none is."""
    if not cooling:
        return tuple(ordered)
    ills = {a.model: cooling.get(a.host) or cooling.get(a.provider) for a in ordered}
    if all(ills.values()):
        return tuple(
            replace(
                attempt,
                reason=f"{attempt.reason}; tried although {ills[attempt.model]}, "
                "because every candidate is cooling",
            )
            for attempt in ordered
        )
    skipped += [
        Skipped(attempt.model, attempt.provider, ill)
        for attempt in ordered
        if (ill := ills[attempt.model]) is not None
    ]
    return tuple(attempt for attempt in ordered if ills[attempt.model] is None)
