"""What answers look like, for the documents: their fields that are always there.

What writes them is elsewhere (`protocol.*_answer`), and need not build objects to do so; a test
asks a running server and holds its answers to these.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from headrace.protocol.openai_batches import Batch, File

Objects = list[dict[str, Any]]


class ErrorDetail(Struct):
    """What went wrong; `param` is the path of the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class AnthropicDetail(Struct):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(Struct):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicDetail
    request_id: str | None = None


class TokenUsage(Struct):
    """Tokens of a call."""

    prompt_tokens: int
    total_tokens: int


class ChatMessage(Struct):
    """The model's turn."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: Objects = []


class ChatChoice(Struct):
    """One of the answers."""

    index: int
    message: ChatMessage
    finish_reason: str


class ChatCompletion(Struct):
    """An answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class CompletionChoice(Struct):
    """One of the answers."""

    index: int
    text: str
    finish_reason: str


class Completion(Struct):
    """An answer to a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage


class MessageUsage(Struct):
    """Tokens of a call; those that a cache had a part in are apart."""

    input_tokens: int
    output_tokens: int


class AnthropicMessage(Struct):
    """An answer in Anthropic's shape."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: Objects
    stop_reason: str
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Struct):
    """The tokens of a prompt."""

    input_tokens: int


class ResponseObject(Struct):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: str
    model: str
    output: Objects
    usage: MessageUsage | None


class ItemList(Struct):
    """A page of items."""

    object: Literal["list"]
    data: Objects
    has_more: bool


class Deleted(Struct):
    """What was deleted."""

    id: str
    object: str
    deleted: Literal[True]


class Embedding(Struct):
    """One vector: numbers, or base64 of float32."""

    index: int
    embedding: list[float] | str


class Embeddings(Struct):
    """A vector for each text."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class RankedDocument(Struct):
    """One document's place."""

    index: int
    relevance_score: float


class Ranking(Struct):
    """Documents, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: TokenUsage


class TextClass(Struct):
    """One text's label, and the probability of each."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classification(Struct):
    """A label for each text."""

    id: str
    object: Literal["list"]
    model: str
    data: list[TextClass]
    usage: TokenUsage


class ModelObject(Struct):
    """A name that a caller may ask for; of a model what is known about it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None = None
    endpoints: list[str] = []
    capabilities: dict[str, bool | None] = {}


class ModelList(Struct):
    """All names."""

    object: Literal["list"]
    data: list[ModelObject]


class FileList(Struct):
    """A page of files."""

    object: Literal["list"]
    data: list[File]
    has_more: bool


class BatchList(Struct):
    """A page of batches."""

    object: Literal["list"]
    data: list[Batch]
    has_more: bool


class Health(Struct):
    """How it is."""

    status: str


class Readiness(Struct):
    """Whether a model can be served, and whether calls are recorded."""

    status: str
    recording: bool


class KeyShown(Struct):
    """A key without its secret; dollars, and Unix seconds."""

    id: str
    name: str
    hint: str
    budget: float | None = None
    models: list[str] = []


class KeyMade(KeyShown, kw_only=True):
    """A new key; `key` is its secret, told this once."""

    key: str


class KeyList(Struct):
    """All keys."""

    keys: list[KeyShown]


class AdapterList(Struct):
    """The adapters that were loaded while serving."""

    adapters: Objects


class Resident(Struct):
    """A local model, and whether it is in memory; sizes in bytes. `host_bytes` are those of the
    host that its sleep takes."""

    name: str
    source: str
    state: str
    bytes: int
    host_bytes: int


class Residents(Struct):
    """The local models, and the memory that they may take together."""

    budget: int
    used: int
    host_used: int
    models: list[Resident]
