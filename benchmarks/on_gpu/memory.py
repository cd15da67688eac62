"""What moves between the host and the device: weights of a model that sleeps, blocks of KV."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headrace.runtime.backends.base import KVLayout, Move
from headrace.runtime.backends.cuda import CUDABackend, found_device
from headrace.runtime.backends.cuda.sleeping import Asleep

from .checks import attention_program
from .kernels import table_of
from .run import Line, Run, stopwatch
from .shapes import BLOCK

PIECES = 16
BLOCKS = 64  # that go out and come in together


def memory(run: Run) -> Iterator[Line]:
    """Bytes a second of weights that leave and wake, and of KV that is kept on the host."""
    size = run.sizes.read // PIECES // 4
    tensors = [torch.zeros(size, dtype=torch.uint8, device=run.device) for _ in range(PIECES)]
    bytes_of_all = size * PIECES
    held: list[Asleep] = []
    slept = stopwatch(lambda: held.append(Asleep(tensors, run.device)))
    asleep = held[0]
    asleep.leave()

    def wake() -> None:
        asleep.come_back()
        asleep.wait()

    woken = stopwatch(wake)
    yield {"sleep": bytes_of_all, "first s": slept, "wake GB/s": bytes_of_all / woken / 1e9}
    asleep.close()
    model = run.sizes.models[-1][0]
    layers = len(model.layers)
    program = attention_program(
        model.head_size, model.heads, model.kv_heads, layers=layers, writes=False
    )
    row = 2 * layers * BLOCK * model.kv_heads * model.head_size * 4
    kv = KVLayout(2 * BLOCKS, BLOCK, host_bytes=row * BLOCKS)
    table = {"table": table_of(program.buffers["qkv"])}
    backend = CUDABackend(program, table, kv, found_device())
    host = backend.host
    if host is None:
        raise ValueError("the backend keeps no KV on the host")
    for out in (True, False):
        moves = [Move(block, block, out) for block in range(min(BLOCKS, host.blocks))]

        def move(moves: list[Move] = moves) -> None:
            host.copy(moves)
            host.wait()

        move()
        spent = stopwatch(move)
        yield {
            "KV": "to the host" if out else "from the host",
            "blocks": len(moves),
            "GB/s": host.row * len(moves) / spent / 1e9,
        }
    backend.close()
