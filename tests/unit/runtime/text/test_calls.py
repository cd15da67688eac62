"""Tool calls in text: every form, however the text is cut, and text that only looks like one."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.request import ToolCall, Tools
from headrace.runtime.text.answer import AnswerReader, Said
from headrace.runtime.text.reasoning import ReasoningSplitter
from headrace.runtime.text.tools import (
    GEMMA,
    GRANITE,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_NAMED,
    CallForm,
    form_of,
    parser,
)

TOOLS = Tools(({"name": "weather"}, {"name": "get.time"}))
FORMS = (HERMES, LLAMA3, MISTRAL, MISTRAL_NAMED, GRANITE, GEMMA)
ULM = ToolCall("weather", '{"city": "Ulm"}')
NOW = ToolCall("get.time", "{}")


def read(form: CallForm, pieces: Sequence[str], *, once: bool = False) -> Said:
    """All that an answer says which comes in these pieces."""
    reader = AnswerReader(None, parser(form, TOOLS), once=once)
    said = [reader.read(piece, final=False) for piece in pieces]
    said.append(reader.read("", final=True))
    return together(said)


def together(said: Sequence[Said]) -> Said:
    return Said(
        "".join(one.text for one in said),
        "".join(one.reasoning for one in said),
        tuple(call for one in said for call in one.calls),
    )


HERMES_ULM = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
HERMES_NOW = '<tool_call>{"name": "get.time", "arguments": {}}</tool_call>'
LLAMA_ULM = '{"name": "weather", "parameters": {"city": "Ulm"}}'
CALLS = [
    (HERMES, HERMES_ULM, "", (ULM,)),
    (HERMES, f"{HERMES_ULM}\n{HERMES_NOW}\n", "", (ULM, NOW)),
    (HERMES, f"\n\nI look it up.\n{HERMES_ULM}", "\n\nI look it up.", (ULM,)),
    (HERMES, f"{HERMES_ULM} And so on.\n", " And so on.\n", (ULM,)),
    (HERMES, HERMES_ULM.removesuffix("</tool_call>"), "", (ULM,)),
    (LLAMA3, LLAMA_ULM, "", (ULM,)),
    (LLAMA3, f" \n{LLAMA_ULM}; {LLAMA_ULM}", "", (ULM, ULM)),
    (LLAMA3, f"<|python_tag|>{LLAMA_ULM}", "", (ULM,)),
    (LLAMA3, f"Well: <|python_tag|>{LLAMA_ULM}", "Well:", (ULM,)),
    (LLAMA3, f"{LLAMA_ULM} is the call", " is the call", (ULM,)),
    (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Ulm"}}]', "", (ULM,)),
    (
        MISTRAL,
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Ulm"}, "id": "abcdefghi"}, '
        '{"name": "get.time"}]',
        "",
        (ULM, NOW),
    ),
    (MISTRAL_NAMED, '[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}', "", (ULM,)),
    (MISTRAL, '[TOOL_CALLS]weather{"city": "Ulm"}[TOOL_CALLS]get.time{}', "", (ULM, NOW)),
    (GRANITE, '<|tool_call|>[{"name": "weather", "arguments": {"city": "Ulm"}}]', "", (ULM,)),
    (GEMMA, '```tool_code\nweather(city="Ulm")\n```', "", (ULM,)),
    (GEMMA, "```tool_code\nprint(weather(city='Ulm'))\nget.time()\n```\n", "", (ULM, NOW)),
    (HERMES, '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\"}"}', "", (ULM,)),
]


@pytest.mark.parametrize(("form", "text", "said", "calls"), CALLS)
def test_calls_are_found_at_any_cut(
    form: CallForm, text: str, said: str, calls: tuple[ToolCall, ...]
) -> None:
    assert read(form, [text]) == Said(said, "", calls)
    assert read(form, list(text)) == Said(said, "", calls)
    for cut in range(len(text)):
        assert read(form, [text[:cut], text[cut:]]) == Said(said, "", calls)


PLAIN = [
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}} and on'),
    (HERMES, "Write <tool_call> and then </tool_call>, 1 < 2 <tool"),
    (HERMES, "<tool_call>" + "[" * 1000),
    (HERMES, '<tool_call>{"name": "weather", "other": 1}</tool_call>'),
    (LLAMA3, '{"name": "Anna", "age": 3}'),
    (LLAMA3, '{"name": "Anna", "parameters": {}}  \n'),
    (LLAMA3, f"The call is {LLAMA_ULM}"),
    (LLAMA3, '<|python_tag|>print("hello")'),
    (LLAMA3, "{1, 2} is a set"),
    (MISTRAL, "[TOOL_CALLS] []"),
    (
        MISTRAL,
        "[TOOL_CALLS] nothing of the kind, and this at some length, so that it is clear " * 3,
    ),
    (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {}}, 1]'),
    (GEMMA, "```tool_code\nimport os\n```"),
    (GEMMA, "```tool_code\nweather(city=home)\n```"),
    (GEMMA, "```tool_code\nweather('Ulm')\n```"),
    (GEMMA, "```tool_code\n" + "(" * 500 + "\n```"),
    (GEMMA, "```tool_code\n```"),
]


@pytest.mark.parametrize(("form", "text"), PLAIN)
def test_text_that_only_looks_like_a_call_stays_text(form: CallForm, text: str) -> None:
    assert read(form, [text]) == Said(text)
    assert read(form, list(text)) == Said(text)


FRAGMENTS = (
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "```tool_code\n",
    "```", "<|tool_call|>", HERMES_ULM, HERMES_NOW, LLAMA_ULM, '{"name": "weather", "arguments": ',
    "{}", "{", "}", "[", "]", '"', "\\", "weather", "weather(city='Ulm')", ";", ",", "\n", " ",
    "text", "é",
    '{"name": "weather", "arguments": {"a": "\\ud800", "b": 1e999}}', "1e999",
    "{1: 2}", "weather(a=1e999)", "weather(a={1, 2}, b='\\ud800')", "\0", "9" * 5000,
    "<", "<think>", "</think>",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)


@given(st.sampled_from(FORMS), TEXTS, st.data())
def test_what_is_found_does_not_depend_on_the_cuts(
    form: CallForm, text: str, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read(form, [text])
    assert read(form, pieces) == whole
    if not whole.calls:
        assert whole.text == text
    for call in whole.calls:
        assert isinstance(json.loads(call.arguments.encode(), parse_constant=pytest.fail), dict)
        assert call.name in ("weather", "get.time")


@given(TEXTS, st.booleans(), st.data())
def test_reasoning_is_told_apart_at_any_cut(text: str, within: bool, data: st.DataObject) -> None:
    def split(pieces: Sequence[str]) -> Said:
        reader = AnswerReader(ReasoningSplitter(within=within), parser(HERMES, TOOLS))
        said = [reader.read(piece, final=False) for piece in pieces]
        return together([*said, reader.read("", final=True)])

    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces) == split([text])


@pytest.mark.parametrize(
    ("text", "within", "reasoning", "answer"),
    [
        ("<think>\nHm.\n\nYes.\n</think>\n\nNo.", False, "Hm.\n\nYes.", "No."),
        ("\n<think>Hm.</think>No.\n", False, "Hm.", "No.\n"),
        ("Hm.\n</think>\n\nNo.", True, "Hm.", "No."),
        ("<think>\n\n</think>\n\nNo.", False, "", "No."),
        ("Hm, and so on", True, "Hm, and so on", ""),
        ("No <think>, no </think>.", False, "", "No <think>, no </think>."),
        ("<thin", False, "", "<thin"),
        ("", False, "", ""),
    ],
)
def test_reasoning_is_what_stands_between_its_marks(
    text: str, within: bool, reasoning: str, answer: str
) -> None:
    for pieces in ([text], list(text)):
        reader = AnswerReader(ReasoningSplitter(within=within), None)
        said = [reader.read(piece, final=False) for piece in pieces]
        assert together([*said, reader.read("", final=True)]) == Said(answer, reasoning)


def test_an_answer_is_over_after_one_call_where_one_is_allowed() -> None:
    said = read(HERMES, [f"First {HERMES_ULM}{HERMES_NOW}", "and more"], once=True)
    assert said == Said("First", "", (ULM,))


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}", MISTRAL_NAMED),
        ("{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ("<tool_call>\\n{{ call }}\\n</tool_call>", HERMES),
        ("<|python_tag|> {{ tools }}", LLAMA3),
        ("```tool_code", GEMMA),
        ("{{ messages }}", HERMES),
    ],
)
def test_the_form_of_calls_shows_in_the_template(template: str, form: CallForm) -> None:
    assert form_of(template) is form
