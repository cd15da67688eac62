"""From a request to a plan: a pure function of request, configuration and health."""

from __future__ import annotations

from headrace.config.schema import Configuration, Match, Route
from headrace.protocol.errors import ModelNotFound
from headrace.protocol.generation import AnyRequest
from headrace.router.plan import Attempt, HealthSnapshot, Plan, Skipped


def plan(
    request: AnyRequest,
    configuration: Configuration,
    version: str,
    health: HealthSnapshot,
) -> Plan:
    """Decide which models to try for `request`, in order.

    The first route whose conditions hold gives the chain; without one the model of that name
    stands alone. A candidate whose provider cools is skipped, unless all of them cool: then
    they are tried in order all the same, since a slim chance is better than none.

    Raises ModelNotFound, with the names that exist, if neither a route nor a model fits.
    """
    route = next((route for route in configuration.routes if _holds(route.when, request)), None)
    if route is None:
        if request.model not in configuration.models:
            raise ModelNotFound(request.model, known_names(configuration))
        name = f"model:{request.model}"
        chain: tuple[str, ...] = (request.model,)
        reasons = [f"the model asked for; no route matches '{request.model}'"]
    else:
        name, chain = route.name, route.attempts
        reasons = _reasons(route)
    candidates = [
        Attempt(
            model=model,
            provider=configuration.models[model].provider,
            upstream_model=configuration.models[model].source,
            reason=reason,
        )
        for model, reason in zip(chain, reasons, strict=True)
    ]
    attempts, skipped = _by_health(candidates, health)
    return Plan(route=name, version=version, attempts=attempts, skipped=skipped)


def known_names(configuration: Configuration) -> tuple[str, ...]:
    """Every name a caller may ask for: the models', then those only a route answers to."""
    asked = [route.when.model for route in configuration.routes if route.when.model is not None]
    return tuple(dict.fromkeys([*configuration.models, *asked]))


def _holds(when: Match, request: AnyRequest) -> bool:
    return when.model is None or when.model == request.model


def _reasons(route: Route) -> list[str]:
    because = (
        "which matches every request"
        if route.when.model is None
        else f"which matches model '{route.when.model}'"
    )
    first = f"first choice of route '{route.name}', {because}"
    return [
        first,
        *(
            f"fallback {place} of route '{route.name}', if those before it fail"
            for place in range(1, len(route.attempts))
        ),
    ]


def _by_health(
    candidates: list[Attempt], health: HealthSnapshot
) -> tuple[tuple[Attempt, ...], tuple[Skipped, ...]]:
    """Split the candidates into those to try and those to skip."""
    cooling = health.cooling
    if all(candidate.host in cooling for candidate in candidates):
        return (
            tuple(
                Attempt(
                    model=candidate.model,
                    provider=candidate.provider,
                    upstream_model=candidate.upstream_model,
                    reason=f"{candidate.reason}; tried although {cooling[candidate.host]}, "
                    "because every candidate is cooling",
                )
                for candidate in candidates
            ),
            (),
        )
    attempts = tuple(c for c in candidates if c.host not in cooling)
    skipped = tuple(
        Skipped(model=c.model, provider=c.provider, reason=cooling[c.host])
        for c in candidates
        if c.host in cooling
    )
    return attempts, skipped
