"""`headrace chat` and `headrace run`: a model in this process, no server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from headrace.cli.engine import loaded
from headrace.cli.errors import CommandError
from headrace.cli.options import QuantizationOption, TensorParallelOption
from headrace.config.schema import DEFAULT_MODEL
from headrace.runtime.request import Finish, Output, Prompt, SamplingParameters

with contextlib.suppress(ImportError):  # some Pythons are built without it
    import readline  # noqa: F401  (gives input() its line editing and history)

LONGEST_ANSWER = 1024  # tokens; a small model may never stop by itself
LONGEST_CONTINUATION = 128  # tokens; a base model hardly ever does
BASE = "({model} is a base model, not taught to chat: it continues what you write.)"


def run(
    model: Annotated[str, typer.Argument(help="Model reference.")],
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    quantization: QuantizationOption = None,
    tensor_parallel: TensorParallelOption = None,
) -> None:
    """Answer one prompt and stop. The same prompt gives the same answer (temperature 0).

    A base model, which no one taught to chat, continues the prompt.

    \b
    headrace run smollm2-135m "What is the capital of France?"
    """
    with loaded(model, quantization, tensor_parallel) as engine:
        asked: Prompt = [{"role": "user", "content": prompt}]
        limit = LONGEST_ANSWER
        if not engine.checkpoint.chats:
            asked, limit = prompt, LONGEST_CONTINUATION
            typer.echo(BASE.format(model=model), err=True)
        _, finish = _print(engine.stream(asked, SamplingParameters(limit, temperature=0.0)))
    typer.echo(_timing(finish), err=True)


def chat(
    model: Annotated[str, typer.Argument(help="Model reference.")] = DEFAULT_MODEL,
    quantization: QuantizationOption = None,
    tensor_parallel: TensorParallelOption = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, /clear starts anew, Ctrl-D leaves.

    A base model, which no one taught to chat, continues the text so far.

    \b
    headrace chat
    headrace chat ./model.gguf
    """
    with loaded(model, quantization, tensor_parallel) as engine:
        chats = engine.checkpoint.chats
        limit = LONGEST_ANSWER if chats else LONGEST_CONTINUATION
        sampling = SamplingParameters(limit, temperature=0.7, top_p=0.95)
        if not chats:
            typer.echo(BASE.format(model=model), err=True)
        typer.echo(f"{model}: ask anything. /clear starts anew, Ctrl-D leaves.", err=True)
        messages: list[dict[str, Any]] = []
        while (question := _ask()) is not None:
            if question == "/clear":
                messages.clear()
                continue
            if not question:
                continue
            messages.append({"role": "user", "content": question})
            asked: Prompt = messages if chats else _text(messages)
            answer, finish = _print(engine.stream(asked, sampling))
            messages.append({"role": "assistant", "content": answer})
            typer.echo(_timing(finish), err=True)


def _text(messages: list[dict[str, Any]]) -> str:
    """What was written and continued so far, as one text."""
    pieces = [("\n" if turn["role"] == "user" else "") + turn["content"] for turn in messages]
    return "".join(pieces).lstrip("\n")


def _ask() -> str | None:
    """One line of the user's; None at the end of input."""
    try:
        return input("\n> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _print(outputs: Iterable[Output]) -> tuple[str, Finish | None]:
    """Write an answer as it comes; Ctrl-C ends it early. Returns its text and how it ended."""
    text, finish = "", None
    with contextlib.suppress(KeyboardInterrupt):
        for output in outputs:
            text += output.text
            finish = output.finish
            typer.echo(output.text, nl=False)
            sys.stdout.flush()
    typer.echo()
    if finish is not None and finish.reason == "error":
        raise CommandError("the engine failed on this request; its log says why")
    return text, finish


def _timing(finish: Finish | None) -> str:
    if finish is None:
        return "(stopped)"
    first = finish.timings.queued + finish.timings.prefill
    speed = (finish.completion_tokens - 1) / max(finish.timings.decode, 1e-9)
    cut = ", cut at the limit" if finish.reason == "length" else ""
    return (
        f"({finish.completion_tokens} tokens, first after {first:.2f} s, then "
        f"{speed:.0f} a second{cut})"
    )
