"""The messages between the platform and an engine's process: one JSON object a line.

To the engine:    load (a model: the first message) · generate, encode (a request) ·
                  cancel (its id) · stop · load_adapter, drop_adapter (by name) ·
                  sleep, wake
From the engine:  ready (what was loaded) · failed (it could not) · refused (a request) ·
                  outputs (news of requests, and the counters after the step) ·
                  encodings (requests that are done, and the counters) ·
                  changed (an adapter is there or gone, the model sleeps or is awake, or why not)

JSON, not pickle: what comes out of the engine's process is data, and a log of the channel can be
read.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from .layout import Layout, Placed
from .options import EngineOptions, Limits
from .request import (
    Counters,
    EncodeRequest,
    Encoding,
    Finish,
    Grammar,
    Objectives,
    Output,
    Request,
    RequestRefused,
    SamplingParameters,
    Timings,
    TokenLogprob,
    ToolCall,
    Tools,
)

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine says of itself once its model is loaded."""

    name: str
    context: int  # tokens
    formats: Mapping[str, int]  # weights of each format
    layout: Layout
    seconds: float  # that loading took
    task: Literal["generate", "embed", "classify"] = "generate"
    refused: Mapping[str, str] = field(default_factory=dict)  # adapters, and why


def load_frame(path: Path, options: EngineOptions, adapters: Mapping[str, Path]) -> bytes:
    """Ask for the model at `path`, with the adapters to begin with, by their names."""
    asked = {**asdict(options), "draft": options.draft and str(options.draft)}
    paths = {name: str(adapter) for name, adapter in adapters.items()}
    return frame("load", path=str(path), options=asked, adapters=paths)


def read_load(message: Message) -> tuple[Path, EngineOptions, Mapping[str, Path]]:
    """Path, options and adapters of a `load` message."""
    asked = message["options"]
    named = {"limits": Limits(**asked["limits"]), "draft": asked["draft"] and Path(asked["draft"])}
    adapters = {name: Path(adapter) for name, adapter in message["adapters"].items()}
    return Path(message["path"]), EngineOptions(**{**asked, **named}), adapters


def read_loaded(message: Message) -> Loaded:
    """What a `ready` message tells."""
    about, found = message["loaded"], message["loaded"]["layout"]
    lines = tuple(Placed(**line) for line in found["lines"])
    return Loaded(**{**about, "layout": Layout(**{**found, "lines": lines})})


def frame(kind: str, **content: Any) -> bytes:
    """One message as it goes over the channel."""
    return json.dumps({"kind": kind, **content}, separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> Message:
    """One line of the channel."""
    message: Message = json.loads(line)
    return message


def request_frame(request: Request, kind: Literal["generate", "count"] = "generate") -> bytes:
    """Ask for a generation, or for how many tokens its prompt has.

    Prompt and tools may be large, and go out without a copy.
    """
    return frame(kind, **shallow(request))


def shallow(record: Any) -> dict[str, Any]:
    """The fields of a record, and of records in it; what else they hold is not copied."""
    found = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: shallow(one) if is_dataclass(one) else one for name, one in found.items()}


def read_request(message: Message) -> Request:
    """The request of a `generate` or `count` message."""
    sampling = message["sampling"]
    for several in ("stop", "stop_tokens", "logit_bias"):
        sampling[several] = tuple(sampling[several])
    grammar, tools = message["grammar"], message["tools"]
    return Request(
        message["id"],
        message["prompt"],
        SamplingParameters(**sampling),
        message["tenant"],
        Objectives(**message["objectives"]),
        grammar and Grammar(**grammar),
        tools and Tools(**{**tools, "functions": tuple(tools["functions"])}),
        adapter=message["adapter"],
        variables=message["variables"],
    )


def encode_frame(request: EncodeRequest) -> bytes:
    """Ask for vectors, scores or labels."""
    return frame("encode", **asdict(request))


def read_encode(message: Message) -> EncodeRequest:
    """The request of an `encode` message."""
    texts = (one if isinstance(one, str) else tuple(one) for one in message["texts"])
    fields = {name: value for name, value in message.items() if name not in ("kind", "texts")}
    return EncodeRequest(texts=tuple(texts), **fields)


def encodings_frame(found: list[Encoding], counters: Counters) -> bytes:
    """What came of requests to an encoder; JSON has no bytes, so values go as base64."""
    done = [{**asdict(one), "values": b64encode(one.values).decode()} for one in found]
    return frame("encodings", encodings=done, counters=asdict(counters))


def read_encodings(message: Message) -> list[Encoding]:
    """What an `encodings` message tells."""
    return [
        Encoding(**{**one, "values": b64decode(one["values"]), "labels": tuple(one["labels"])})
        for one in message["encodings"]
    ]


def refusal_frame(id: str, refused: RequestRefused) -> bytes:
    """Say that a request cannot run."""
    return frame(
        "refused", id=id, code=refused.code, message=refused.message, details=refused.details
    )


def read_refusal(message: Message) -> RequestRefused:
    """The refusal of a `refused` message."""
    return RequestRefused(message["code"], message["message"], **message["details"])


def outputs_frame(outputs: list[Output], counters: Counters) -> bytes:
    """News of requests after a step, and the counters."""
    news = [
        (
            output.id,
            output.text,
            output.tokens,
            output.finish and asdict(output.finish),
            [logprob_frame(one) for one in output.logprobs],
            [logprob_frame(one) for one in output.prompt_logprobs],
            output.reasoning,
            [(call.name, call.arguments) for call in output.calls],
        )
        for output in outputs
    ]
    return frame("outputs", outputs=news, counters=asdict(counters))


def read_outputs(message: Message) -> list[Output]:
    """The news of an `outputs` message."""
    return [
        Output(
            id,
            text,
            tuple(tokens),
            finish and read_finish(finish),
            tuple(map(read_logprob, logprobs)),
            tuple(map(read_logprob, prompt_logprobs)),
            reasoning,
            tuple(ToolCall(*call) for call in calls),
        )
        for id, text, tokens, finish, logprobs, prompt_logprobs, reasoning, calls in message[
            "outputs"
        ]
    ]


def logprob_frame(one: TokenLogprob) -> list[Any]:
    """A token's log-probability; JSON has no bytes, so each is one character of Latin-1."""
    ranked = [logprob_frame(other) for other in one.ranked]
    return [one.token, one.bytes.decode("latin-1"), one.logprob, ranked]


def read_logprob(sent: list[Any]) -> TokenLogprob:
    """The log-probability of a frame."""
    token, label, logprob, ranked = sent
    return TokenLogprob(
        token, label.encode("latin-1"), logprob, tuple(read_logprob(other) for other in ranked)
    )


def read_finish(finish: Message) -> Finish:
    """The end of a request."""
    return Finish(**{**finish, "timings": Timings(**finish["timings"])})
