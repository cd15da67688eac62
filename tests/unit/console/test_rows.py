"""What the list shows of a call's input."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.console.rows import preview


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ({"messages": [{"role": "user", "content": "Hi\nthere"}]}, "Hi there"),
        ({"prompt": "Once"}, "Once"),
        ({"prompt": [1, 2]}, ""),
        ({"input": ["a river", "a stream"]}, "a river a stream"),
        ({"input": [[1, 2], "a"]}, "a"),
        ({"query": "which?", "documents": ["a"]}, "which?"),
        ({}, ""),
    ],
)
def test_the_beginning_of_what_was_asked_is_shown(recorded: dict[str, Any], shown: str) -> None:
    assert preview(recorded) == shown
