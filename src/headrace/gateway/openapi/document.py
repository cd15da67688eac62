"""The documents, made of the types that requests are parsed by. Source: OpenAPI 3.1.0."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace import __version__
from headrace.gateway.admin import guarded
from headrace.gateway.openapi.answers import AnthropicError, ErrorBody
from headrace.gateway.openapi.operations import ADMIN, DATA, FORM, JSON, TEXT, Operation

REFERENCE = "#/components/schemas/{name}"
SECURITY = {
    "key": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}

Schemas = Mapping[type, dict[str, Any]]


def document(title: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """The document of some operations."""
    types: list[type] = [ErrorBody, AnthropicError]
    for operation in operations:
        for one in (operation.answer, operation.body, operation.query):
            if one is not None and one not in types:
                types.append(one)
    found, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schemas = dict(zip(types, found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(
            operation, schemas, components
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": SECURITY},
        "security": [{}, *({name: []} for name in SECURITY)],
    }


def document_routes() -> list[Route]:
    """The paths where the documents are."""
    data = _serving(document("Headrace", DATA))
    admin = _serving(document("Headrace: administration", ADMIN))
    return [
        Route("/openapi.json", data, methods=["GET"]),
        Route("/admin/openapi.json", guarded(admin), methods=["GET"]),
    ]


def _serving(told: dict[str, Any]) -> Callable[[Request], Awaitable[Response]]:
    body = msgspec.json.encode(told)

    async def answer(_: Request) -> Response:
        return Response(body, media_type=JSON)

    return answer


def _operation(
    operation: Operation, schemas: Schemas, components: Mapping[str, Any]
) -> dict[str, Any]:
    anthropic = operation.path.startswith("/v1/messages")
    error = schemas[AnthropicError if anthropic else ErrorBody]
    told: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _identifier(operation),
        "responses": {
            str(operation.status): _answer(operation, schemas),
            "default": {"description": "What went wrong", "content": {JSON: {"schema": error}}},
        },
    }
    if operation.path == "/health/ready":
        told["responses"]["503"] = {**_answer(operation, schemas), "description": "Not yet"}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    if operation.query is not None:
        parameters += _parameters(components[operation.query.__name__])
    if parameters:
        told["parameters"] = parameters
    if operation.body is not None:
        told["requestBody"] = {"required": True, "content": _body(operation, schemas, components)}
    return told


def _identifier(operation: Operation) -> str:
    return "_".join([operation.method, *re.findall(r"\w+", operation.path)])


def _answer(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[JSON] = {"schema": schemas[operation.answer]}
    for kind in operation.media:
        content[kind] = {"schema": {"type": "string"} if kind == TEXT else {}}
    return {"description": operation.summary, **({"content": content} if content else {})}


def _body(operation: Operation, schemas: Schemas, components: Mapping[str, Any]) -> dict[str, Any]:
    body = operation.body
    if body is None or not operation.files:
        return {} if body is None else {JSON: {"schema": schemas[body]}}
    fields = components[body.__name__]
    first = operation.files[0]
    files = {name: {"type": "string", "format": "binary"} for name in operation.files}
    schema = {
        "type": "object",
        "properties": {**fields["properties"], **files},
        "required": [*fields["required"], first],
    }
    return {FORM: {"schema": schema}}


def _parameters(query: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in query["properties"].items()
    ]
