"""Every operation of the two APIs: what it reads, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.gateway.adapters import AddedAdapter
from headrace.gateway.key_admin import NewKey
from headrace.gateway.offline.endpoints import BatchesPage, FileForm, FilesPage, NewBatch
from headrace.gateway.openapi import answers
from headrace.protocol.anthropic import MessagesBody, PromptBody
from headrace.protocol.openai import ChatBody, CompletionBody
from headrace.protocol.openai_batches import Batch, File
from headrace.protocol.openai_encoding import ClassificationBody, EmbeddingBody, RankBody
from headrace.protocol.openai_media import (
    ImageBody,
    ImageForm,
    ModerationBody,
    SoundForm,
    SpeechBody,
)
from headrace.protocol.responses import ResponseBody
from headrace.protocol.responses_items import ItemsPage

JSON, FORM, EVENTS = "application/json", "multipart/form-data", "text/event-stream"
BYTES, TEXT = "application/octet-stream", "text/plain"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `body` is the type of a JSON body, or of the fields of a form where `files` names those of its
    files. An answer of `status` is of the type `answer`, or one of `media`; None and () is an
    answer without a body. `query` is the type of the query's parameters.
    """

    method: str
    path: str
    summary: str
    answer: type | None = None
    body: type | None = None
    files: tuple[str, ...] = ()
    query: type | None = None
    media: tuple[str, ...] = ()
    status: int = 200


def _post(
    path: str,
    summary: str,
    body: type,
    answer: type | None,
    *media: str,
    files: tuple[str, ...] = (),
) -> Operation:
    return Operation("post", path, summary, answer, body, files, media=media)


def _get(path: str, summary: str, answer: type | None, *media: str) -> Operation:
    return Operation("get", path, summary, answer, media=media)


DATA = (
    _post(
        "/v1/chat/completions", "Go on with a conversation", ChatBody, answers.ChatCompletion,
        EVENTS,
    ),
    _post("/v1/completions", "Go on with a prompt", CompletionBody, answers.Completion, EVENTS),
    _post("/v1/messages", "Anthropic's messages", MessagesBody, answers.AnthropicMessage, EVENTS),
    _post("/v1/messages/count_tokens", "Count a prompt's tokens", PromptBody, answers.TokenCount),
    _post("/v1/responses", "OpenAI's Responses", ResponseBody, answers.ResponseObject, EVENTS),
    _get("/v1/responses/{id}", "A stored response", answers.ResponseObject),
    Operation("delete", "/v1/responses/{id}", "Forget a response", answers.Deleted),
    Operation(
        "get", "/v1/responses/{id}/input_items", "What a response answers", answers.ItemList,
        query=ItemsPage,
    ),
    _post("/v1/embeddings", "Vectors of texts", EmbeddingBody, answers.Embeddings),
    _post("/v1/rerank", "Documents, best first", RankBody, answers.Ranking),
    _post("/v1/classify", "Texts under labels", ClassificationBody, answers.Classification),
    _post("/v1/images/generations", "Make images", ImageBody, None, JSON, EVENTS),
    _post(
        "/v1/images/edits", "Change images", ImageForm, None, JSON, EVENTS,
        files=("image", "mask"),
    ),
    _post("/v1/audio/speech", "Speak a text", SpeechBody, None, BYTES, "audio/*", EVENTS, JSON),
    _post(
        "/v1/audio/transcriptions", "Write sound down", SoundForm, None, JSON, TEXT, EVENTS,
        files=("file",),
    ),
    _post(
        "/v1/audio/translations", "Write sound down in English", SoundForm, None, JSON, TEXT,
        files=("file",),
    ),
    _post("/v1/moderations", "Judge texts and images", ModerationBody, None, JSON),
    _get("/v1/models", "Every name a caller may ask for", answers.ModelList),
    _get("/v1/models/{name}", "One of them", answers.ModelObject),
    Operation("get", "/v1/files", "The caller's files", answers.FileList, query=FilesPage),
    Operation(
        "post", "/v1/files", "Store a file of requests", File, FileForm, files=("file",),
    ),
    _get("/v1/files/{id}", "A file", File),
    Operation("delete", "/v1/files/{id}", "Delete a file", answers.Deleted),
    _get("/v1/files/{id}/content", "A file's bytes", None, BYTES),
    Operation("get", "/v1/batches", "The caller's batches", answers.BatchList, query=BatchesPage),
    _post("/v1/batches", "Have a file's requests carried out", NewBatch, Batch),
    _get("/v1/batches/{id}", "A batch", Batch),
    Operation("post", "/v1/batches/{id}/cancel", "Cancel a batch", Batch),
    _get("/health/live", "Whether the process answers", answers.Health),
    _get("/health/ready", "Whether a model can be served, else 503", answers.Readiness),
    _get("/metrics", "For Prometheus", None, TEXT),
    _get("/openapi.json", "This document", None, JSON),
)  # fmt: skip

ADMIN = (
    _get("/admin/keys", "All keys", answers.KeyList),
    Operation("post", "/admin/keys", "Make a key", answers.KeyMade, NewKey, status=201),
    Operation("delete", "/admin/keys/{name}", "Revoke a key", status=204),
    _get("/admin/adapters", "The adapters loaded while serving", answers.AdapterList),
    _post("/admin/adapters", "Load an adapter", AddedAdapter, AddedAdapter),
    Operation("delete", "/admin/adapters/{name}", "Drop an adapter", AddedAdapter),
    _get("/admin/models", "Local models", answers.Residents),
    Operation("post", "/admin/models/{name}/load", "Load a model", answers.Resident),
    Operation("post", "/admin/models/{name}/unload", "Unload a model", answers.Resident),
    Operation("post", "/admin/models/{name}/sleep", "Let a model leave its GPU", answers.Resident),
    Operation("post", "/admin/models/{name}/wake", "Have a model back", answers.Resident),
    _get("/admin/openapi.json", "This document", None, JSON),
)
