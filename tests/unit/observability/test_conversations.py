"""Stored responses: how long, and whose."""

from __future__ import annotations

from pathlib import Path

from headrace.observability.conversations import KEPT, Conversations, StoredResponse
from headrace.observability.database import open_engine
from headrace.observability.store import store_url
from headrace.protocol.generation import Message


def test_a_response_that_is_too_old_is_not_there_while_the_server_runs(tmp_path: Path) -> None:
    now = 1_000_000.0
    engine = open_engine(store_url(tmp_path))
    stored = Conversations(engine, lambda: now)

    def keep(id: str) -> None:
        turns = (Message(role="user", content="Hi"),)
        stored.keep(StoredResponse(id=id, tenant="one", created_at=now, body=b"{}", messages=turns))

    keep("old")
    assert stored.find("old", "one") is not None
    assert stored.find("old", "two") is None
    now += KEPT + 1
    assert stored.find("old", "one") is None
    keep("new")
    assert not stored.drop("old", "one")  # it was dropped when the new one came
    assert stored.find("new", "one") is not None
    engine.dispose()
