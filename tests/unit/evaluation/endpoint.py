"""A small OpenAI-compatible endpoint on a real socket, whose answers depend on the question."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Reply = str | web.Response


@dataclass
class Endpoint:
    """What it was asked, how many at once at most, and where it is."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    hold: asyncio.Event | None = None  # answers wait for it


def completion(text: str | None) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


@asynccontextmanager
async def serving(reply: Callable[[str], Reply]) -> AsyncIterator[Endpoint]:
    """Serve; `reply` turns the last user message (or prompt) into the answer's text."""
    endpoint = Endpoint()

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        endpoint.bodies.append(body)
        endpoint.headers.append({name.lower(): value for name, value in request.headers.items()})
        endpoint.running += 1
        endpoint.most_running = max(endpoint.most_running, endpoint.running)
        try:
            if endpoint.hold is not None:
                await endpoint.hold.wait()
            question = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
            replied = reply(question)
        finally:
            endpoint.running -= 1
        if isinstance(replied, web.Response):
            return replied
        call_id = f"req-{len(endpoint.bodies)}"
        if "prompt" in body:
            return web.json_response(
                {"choices": [{"index": 0, "text": replied}]}, headers={"x-request-id": call_id}
            )
        return web.json_response(completion(replied), headers={"x-request-id": call_id})

    application = web.Application()
    application.router.add_post("/v1/chat/completions", answer)
    application.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    endpoint.url = f"http://{host}:{port}/v1"
    try:
        yield endpoint
    finally:
        await runner.cleanup()
