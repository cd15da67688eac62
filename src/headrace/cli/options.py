"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.runtime.options import KVChoice, Quantization

QuantizationOption = Annotated[
    Quantization | None,
    typer.Option(help="Round float weights to so many bits when they are loaded."),
]
OffloadOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Host memory for KV that a GPU gives away, as 16GiB."),
]
TensorParallelOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Share the model among so many GPUs of this machine."),
]
KVOption = Annotated[
    KVChoice | None,
    typer.Option(help="Entries of the KV cache: int8 (and fp8, on a GPU) halves its memory."),
]
