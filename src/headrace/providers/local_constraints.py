"""What a request holds its answer to, in the engine's words: grammars and tools.

`response_format`, `tools`, `tool_choice` and `parallel_tool_calls` are OpenAI's; `guided_regex`,
`guided_choice` and `guided_grammar` are vLLM's extensions.
"""

from __future__ import annotations

import json
from typing import Any

from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import GenerationRequest
from headrace.runtime.request import Grammar, Tools

FORMAT = "response_format"
GUIDES = ("guided_regex", "guided_choice", "guided_grammar")
CONSTRAINTS = frozenset({FORMAT, *GUIDES, "tools", "tool_choice", "parallel_tool_calls"})


def grammar(request: GenerationRequest) -> Grammar | None:
    """The grammar that the answer is held to. Raises InvalidField."""
    field = grammar_field(request)
    if field is None:
        return None
    asked = request.extra[field]
    if field == FORMAT:
        return formatted(asked)
    if field == "guided_choice":
        if not isinstance(asked, list):
            raise InvalidField(field, "expected a list of strings.")
        return Grammar("choice", json.dumps(asked, ensure_ascii=False))
    if not isinstance(asked, str):
        raise InvalidField(field, "expected a string.")
    return Grammar("regex" if field == "guided_regex" else "lark", asked)


def grammar_field(request: GenerationRequest) -> str | None:
    """The field that asks for a grammar. Raises InvalidField where there are several."""
    given = [field for field in GUIDES if request.extra.get(field) is not None]
    if request.extra.get(FORMAT) not in (None, {"type": "text"}):
        given.append(FORMAT)
    if len(given) > 1:
        raise InvalidField(given[0], f"cannot be combined with {given[1]}.")
    return given[0] if given else None


def formatted(asked: Any) -> Grammar:
    """The grammar of a `response_format`."""
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "json_object":
        return Grammar("json_object")
    if kind != "json_schema":
        raise InvalidField(
            f"{FORMAT}.type" if isinstance(asked, dict) else FORMAT,
            "expected one of text, json_object, json_schema.",
        )
    described = asked.get("json_schema")
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise InvalidField(f"{FORMAT}.json_schema.schema", "expected a JSON schema.")
    strict = described.get("strict") is True
    source = json.dumps(described["schema"], ensure_ascii=False)
    return Grammar("json_schema", source, lenient=not strict)


def tools(request: GenerationRequest) -> Tools | None:
    """The tools that the model is offered; None where it has none. Raises InvalidField."""
    extra = request.extra
    choice, offered = extra.get("tool_choice"), extra.get("tools") or []
    if not isinstance(offered, list):
        raise InvalidField("tools", "expected a list of tools.")
    if not offered:
        if choice not in (None, "none", "auto"):
            raise InvalidField("tool_choice", "is only allowed where tools are given.")
        return None
    functions = tuple(function(f"tools[{index}]", tool) for index, tool in enumerate(offered))
    if choice == "none":
        return None
    named = chosen(choice)
    parallel = extra.get("parallel_tool_calls") is not False
    required = choice == "required" or named is not None
    return Tools(functions, required=required, named=named, parallel=parallel)


def function(path: str, tool: Any) -> dict[str, Any]:
    """The function that a tool is. Raises InvalidField."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise InvalidField(f"{path}.type", "expected 'function': other tools cannot be served.")
    found = tool.get("function")
    if not isinstance(found, dict):
        raise InvalidField(f"{path}.function", "expected an object.")
    return {name: value for name, value in found.items() if value is not None}


def chosen(choice: Any) -> str | None:
    """The one function that a `tool_choice` names. Raises InvalidField."""
    if choice in (None, "auto", "required"):
        return None
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        raise InvalidField("tool_choice", "expected auto, none, required or a function to call.")
    return name
