"""Call records for the tests of this room."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.observability.record import CallRecord

BASE = CallRecord(
    id="call",
    started_at=1_700_000_000.0,
    tenant="default",
    endpoint="chat",
    model="small",
    stream=False,
    status="ok",
    http_status=200,
    duration=0.25,
    served_model="small",
    provider="local",
    route="model:small",
    ttft=0.05,
    prompt_tokens=10,
    completion_tokens=5,
    cost=0.001,
    input={"messages": [{"role": "user", "content": "héllo \x00 🙂"}]},
    output={"text": "world"},
)


def call(call_id: str, **changes: Any) -> CallRecord:
    return msgspec.structs.replace(BASE, id=call_id, **changes)
