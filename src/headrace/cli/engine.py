"""A model in this process, for the commands that need no server."""

from __future__ import annotations

from headrace.cli.errors import CommandError
from headrace.cli.progress import shown
from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.options import Quantization


def loaded(
    model: str, quantization: Quantization | None, tensor_parallel: int | None = None
) -> Engine:
    """Fetch a model where it is not here, and load it. Raises CommandError where it cannot be."""
    with shown() as progress:
        path = pull(model, progress)
    try:
        return Engine.load(
            path, EngineOptions(quantization=quantization, tensor_parallel=tensor_parallel or 1)
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"Cannot load {path}: {error}") from error
    except MemoryError:
        raise CommandError(f"Cannot load {path}: there is not enough memory") from None
