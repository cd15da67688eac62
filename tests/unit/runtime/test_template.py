"""Chat templates: rendered in a sandbox, refused politely."""

from __future__ import annotations

from datetime import datetime

import pytest

from headrace.runtime.request import RequestRefused
from headrace.runtime.text.template import CHATML, ChatTemplate

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_conversation_becomes_text_that_waits_for_the_answer() -> None:
    rendered = ChatTemplate(CHATML).render(HELLO)
    assert rendered == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    template = ChatTemplate(CHATML)
    assert template.render([{"role": "user", "content": parts}]) == template.render(HELLO)


def test_an_image_is_refused_by_its_kind() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(RequestRefused, match="image_url"):
        ChatTemplate(CHATML).render([{"role": "user", "content": parts}])


def test_what_the_template_refuses_is_said_in_its_words() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestRefused, match="roles must alternate"):
        template.render(HELLO)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append({}) }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(RequestRefused):
        ChatTemplate(attack).render(HELLO)


def test_templates_can_ask_for_the_date_and_for_json() -> None:
    source = "{{ strftime_now('%Y') }} {{ messages[0] | tojson }} {{ bos_token }}"
    template = ChatTemplate(source, bos_token="<s>", now=lambda: datetime(2031, 1, 1))
    assert template.render([{"role": "user", "content": "<é>"}]) == (
        '2031 {"role": "user", "content": "<é>"} <s>'
    )
