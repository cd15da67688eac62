"""Google Gemini's dialect, outwards: what is asked of `streamGenerateContent`.

Source: the Gemini API reference (generateContent, function calling, thinking, thought signatures).
A function's result goes by the function's name, so it is looked up by the id of its call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from headrace.protocol.content import (
    Audio,
    Document,
    Image,
    Opaque,
    Part,
    Text,
    Thinking,
    Tool,
    ToolCall,
    inline,
    plain_text,
)
from headrace.protocol.generation import GenerationRequest, Message
from headrace.providers.anthropic import arguments_of
from headrace.providers.dialect import Dialect, encode
from headrace.providers.gemini_chunks import ContentReader
from headrace.providers.translation import (
    HARMLESS,
    UNKNOWN,
    native,
    native_extra,
    not_there,
    refuse_given,
)
from headrace.providers.upstream import Exchange

# What the reference says to send for a call whose signature is not known.
UNSIGNED = "skip_thought_signature_validator"
LEVELS = {"minimal": "low", "low": "low", "medium": "high", "high": "high"}
BUDGETS = {"minimal": 512, "low": 1024, "medium": 8192}  # tokens of thought; else the next
LARGE_BUDGET = 24576


def gemini_dialect(name: str, key: str | None) -> Dialect:
    """The dialect of the provider `name`. `key` goes into one header and nowhere else."""

    def write(request: GenerationRequest, model: str) -> Exchange:
        path = f"/models/{quote(model, safe='')}:streamGenerateContent?alt=sse"
        return Exchange(path, encode(request_body(request, model)))

    return Dialect(
        write=write,
        reader=lambda request: ContentReader(name),
        headers={} if key is None else {"x-goog-api-key": key},
    )


def request_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """`request` in Gemini's words. Raises InvalidField where it has none for it."""
    refuse_given(request, *UNKNOWN)
    if request.n > 1:
        raise not_there("n")
    if request.parallel_tool_calls is False:
        raise not_there("parallel_tool_calls")
    native_extra(request, None, HARMLESS)
    request = native(request, None)
    system, contents = _conversation(request, model)
    body: dict[str, Any] = {"contents": contents, "generationConfig": _config(request, model)}
    if system:
        body["systemInstruction"] = {"parts": system}
    if request.tools:
        declared = [_tool(tool) for tool in request.tools if isinstance(tool, Tool)]
        body["tools"] = [{"functionDeclarations": declared}]
    choice = request.tool_choice
    if choice is not None and not isinstance(choice, Opaque):
        modes = {"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}
        calling: dict[str, Any] = {"mode": modes[choice.mode]}
        if choice.mode == "named":
            calling["allowedFunctionNames"] = [choice.name]
        body["toolConfig"] = {"functionCallingConfig": calling}
    return body


def _config(request: GenerationRequest, model: str) -> dict[str, Any]:
    given: dict[str, Any] = {
        "maxOutputTokens": request.max_tokens,
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k or None,
        "seed": request.seed,
        "stopSequences": request.stop or None,
        "presencePenalty": request.presence_penalty,
        "frequencyPenalty": request.frequency_penalty,
    }
    form, reasoning = request.response_format, request.reasoning
    if form is not None and not isinstance(form, Opaque) and form.kind != "text":
        given["responseMimeType"] = "application/json"
        given["responseJsonSchema"] = form.schema
    if reasoning is not None:
        effort = reasoning.effort
        config: dict[str, Any] = {"includeThoughts": True}
        if reasoning.thinking is False:
            config = {"thinkingBudget": 0}
        elif reasoning.budget is not None:
            config["thinkingBudget"] = reasoning.budget
        elif effort is not None and "gemini-3" in model:
            config["thinkingLevel"] = LEVELS.get(effort, "high")
        elif effort is not None:
            config["thinkingBudget"] = BUDGETS.get(effort, LARGE_BUDGET)
        given["thinkingConfig"] = config
    return {name: value for name, value in given.items() if value is not None}


def _conversation(
    request: GenerationRequest, model: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system prompt's parts and the turns; neighbours of one role are one turn."""
    system: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of functions, by their calls' ids
    signed = "gemini-3" in model
    shown: list[dict[str, Any]] = []  # by tools; it stands behind the results of all of them
    for place, message in enumerate(request.messages or ()):
        path = f"messages[{place}]"
        parts = list(_turn(path, message, names, signed))
        if message.role == "tool":
            shown += parts[1:]
            parts = parts[:1]
        elif shown:
            contents[-1]["parts"] += shown
            shown = []
        if message.role in ("system", "developer"):
            system += parts
            continue
        role = "model" if message.role == "assistant" else "user"
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    if shown:
        contents[-1]["parts"] += shown
    return system, contents


def _turn(
    path: str, message: Message, names: dict[str, str], signed: bool
) -> Iterator[dict[str, Any]]:
    content = message.content
    parts = (Text(content),) if isinstance(content, str) else content or ()
    if message.role == "tool":
        id = message.tool_call_id or ""
        told = {"error" if message.is_error else "output": plain_text(content)}
        yield {"functionResponse": {"id": id, "name": names.get(id, id), "response": told}}
        parts = tuple(part for part in parts if not isinstance(part, Text))
    for place, part in enumerate(parts):
        written = _part(f"{path}.content[{place}]", part)
        if written is not None:
            yield written
    for place, call in enumerate(message.tool_calls):
        if isinstance(call, ToolCall):
            names[call.id] = call.name
            args = arguments_of(f"{path}.tool_calls[{place}].function.arguments", call.arguments)
            body = {"functionCall": {"id": call.id, "name": call.name, "args": args}}
            signature = call.signature or (UNSIGNED if signed and place == 0 else None)
            yield body if signature is None else body | {"thoughtSignature": signature}


def _part(path: str, part: Part) -> dict[str, Any] | None:
    match part:
        case Text(""):
            return None
        case Text(text):
            return {"text": text}
        case Image(url) | Document(url):
            held = inline(url)
            if held is None:
                return {"fileData": {"fileUri": url}}
            return {"inlineData": {"mimeType": held[0], "data": held[1]}}
        case Audio(data, form):
            return {"inlineData": {"mimeType": f"audio/{form}", "data": data}}
        case Thinking():
            return None  # another model's
    raise not_there(path)


def _tool(tool: Tool) -> dict[str, Any]:
    body: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        body["description"] = tool.description
    if tool.parameters is not None:
        body["parametersJsonSchema"] = tool.parameters
    return body
