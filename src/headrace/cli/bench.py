"""`headrace bench`: a model's tokens per second in this process."""

from __future__ import annotations

import statistics
from typing import Annotated

import typer

from headrace.cli.engine import loaded
from headrace.cli.errors import CommandError
from headrace.cli.options import QuantizationOption, TensorParallelOption
from headrace.config.schema import DEFAULT_MODEL
from headrace.runtime.engine import Engine
from headrace.runtime.request import Finish, SamplingParameters

PROMPT = 256  # tokens
ANSWER = 64  # tokens
RUNS = 3


def bench(
    model: Annotated[str, typer.Argument(help="Model reference.")] = DEFAULT_MODEL,
    quantization: QuantizationOption = None,
    tensor_parallel: TensorParallelOption = None,
) -> None:
    """Measure tokens per second, one request at a time: the median of three runs.

    \b
    headrace bench
    headrace bench ./model --quantization int4
    """
    with loaded(model, quantization, tensor_parallel) as engine:
        prompt = min(PROMPT, engine.context - ANSWER)
        if prompt < 1:
            raise CommandError(f"the context of {model} is too short to measure")
        _once(engine, prompt, RUNS)  # the first run pays for page faults and caches
        finishes = [_once(engine, prompt, run) for run in range(RUNS)]
        kernels = sorted(set(engine.backend.kernels().values()))
    prefill = statistics.median(f.prompt_tokens / f.timings.prefill for f in finishes)
    decode = statistics.median((f.completion_tokens - 1) / f.timings.decode for f in finishes)
    typer.echo(f"{model}  kernels: {'; '.join(kernels)}")
    typer.echo(f"prefill  {prefill:10.1f} tokens/s  ({prompt} tokens)")
    typer.echo(f"decode   {decode:10.1f} tokens/s  ({ANSWER} tokens)")


def _once(engine: Engine, prompt: int, run: int) -> Finish:
    size = engine.checkpoint.architecture.vocabulary
    # An arithmetic walk through the vocabulary: no text, no chance, and no beginning in common
    # with another run's, which the engine would not compute again.
    tokens = [(7 + run + 7919 * i) % size for i in range(prompt)]
    sampling = SamplingParameters(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    finish = None
    for output in engine.stream(tokens, sampling):
        finish = output.finish
    if finish is None or finish.reason == "error":
        raise CommandError("the engine failed; its log says why")
    return finish
