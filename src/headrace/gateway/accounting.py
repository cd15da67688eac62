"""The record stage: what a call was, in numbers and dollars."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from headrace.gateway.call import Call
from headrace.gateway.services import Services
from headrace.observability.record import AttemptRecord, CallRecord, CallStatus
from headrace.protocol.errors import HeadraceError
from headrace.protocol.generation import AnyRequest, EngineTimings, GenerationRequest, Usage
from headrace.protocol.media import MediaRequest
from headrace.router.decide import digest

_SILENT = GenerationRequest(endpoint="chat", model="")  # says nothing
NOTHING = Usage(prompt_tokens=0, completion_tokens=0)


def account(
    services: Services,
    call: Call,
    status: CallStatus,
    http_status: int,
    error: HeadraceError | None = None,
) -> None:
    """Make the call's record and hand it on. After it the last bytes may be sent."""
    record = record_of(services, call, status, http_status, error)
    tokens = record.prompt_tokens + record.completion_tokens
    spent = sum(attempt.cost or 0.0 for attempt in record.attempts)
    services.keyring.end(call.charge, tokens, spent)
    services.record(record)
    services.metrics.observe(record)


def record_of(
    services: Services,
    call: Call,
    status: CallStatus,
    http_status: int,
    error: HeadraceError | None,
) -> CallRecord:
    """The record of `call` as it stands."""
    finished = call.answer.finished
    own = _own(call)
    attempts = _attempts(call, own)
    usage = _usage(call, attempts)
    served = call.served
    plan = call.plan
    content = call.deployment.configuration.log.content
    timings = finished.timings if finished is not None and own else None
    return CallRecord(
        id=call.id,
        started_at=call.started_at,
        tenant=call.tenant,
        endpoint=call.endpoint,
        model=call.model,
        stream=call.request is not None and call.request.stream,
        status=status,
        http_status=http_status,
        duration=services.clock() - call.started,
        route=None if plan is None else plan.route,
        version=call.deployment.version,
        served_model=None if served is None else served.model,
        provider=None if served is None else served.provider,
        attempts=attempts,
        skipped=() if plan is None else tuple(msgspec.to_builtins(plan.skipped)),
        cache=call.cache,
        ttft=None if call.first_delta is None else call.first_delta - call.started,
        itl=_itl(call, usage) if own else None,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        usage_provenance=None if usage is NOTHING else usage.provenance,
        cost=_dollars(attempts),
        decision=None
        if call.decision is None
        else {
            "facts": call.decision.facts,
            "snapshot": call.decision.snapshot,
            "plan": digest(call.decision.plan),
        },
        finish_reason=None if finished is None else finished.reason,
        error=None if error is None else error.message,
        error_code=None if error is None else error.code or error.kind,
        engine=None if timings is None else _engine(timings),
        input=_input(call) if content else None,
        output=None if call.answer.silent or not content else call.answer.content(),
    )


def _usage(call: Call, attempts: tuple[AttemptRecord, ...]) -> Usage:
    """What the caller got; of an answer that was cut short, or never began, an estimate."""
    if call.answer.finished is not None:
        return call.answer.finished.usage
    if call.answer.deltas:
        prompt = 0 if call.decision is None else call.decision.facts.prompt_tokens
        return Usage(prompt, call.answer.deltas, provenance="estimated")
    return next((one.usage for one in reversed(attempts) if one.usage is not None), NOTHING)


def _own(call: Call) -> bool:
    """Whether the cost is this call's: it began the execution, or saw its end as the first of
    those who stayed when the one that began it left. So each execution is paid for once."""
    execution = call.execution
    if execution is None:
        return False
    if call.cache != "shared":
        execution.orphaned = not execution.ended
        return execution.ended
    inherited = execution.orphaned and execution.ended
    if inherited:
        execution.orphaned = False
    return inherited


def _attempts(call: Call, own: bool) -> tuple[AttemptRecord, ...]:
    if call.execution is None or (call.cache == "shared" and not own):
        return ()
    return tuple(call.execution.attempts)


def _dollars(attempts: tuple[AttemptRecord, ...]) -> float | None:
    """What all of them cost; None where one has no known price."""
    total = 0.0
    for attempt in attempts:
        if attempt.cost is None:
            return None
        total += attempt.cost
    return total


def _itl(call: Call, usage: Usage) -> float | None:
    """Mean seconds between output tokens, of which a delta may hold several."""
    if call.first_delta is None or call.last_delta is None or usage.completion_tokens < 2:
        return None
    return (call.last_delta - call.first_delta) / (usage.completion_tokens - 1)


def _engine(timings: EngineTimings) -> dict[str, float]:
    return {
        "queued": timings.queued,
        "prefill": timings.prefill,
        "decode": timings.decode,
    }


def _input(call: Call) -> dict[str, Any] | None:
    """The request's fields that say something; not copied, the record is encoded at once."""
    request = call.request
    if request is None:
        return None
    if isinstance(request, MediaRequest):
        return request.recorded()
    return {
        name: value
        for name, default in _told(type(request))
        if (value := getattr(request, name)) != default
    }


@cache
def _told(kind: type[AnyRequest]) -> tuple[tuple[str, Any], ...]:
    """The fields of a request that its record holds, each with the value that says nothing;
    `endpoint` always says something."""
    return tuple(
        (name, None if name == "endpoint" else getattr(_SILENT, name, None))
        for name in kind.__struct_fields__
        if name != "tenant"
    )
