"""What this machine can do at best, measured: what the figures are shares of."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.models.program import Linear

READ = 1 << 28  # bytes a thread reads, far past any cache of one core
ROUNDS = 5

# products of the size that prefill has, by torch's matmul (oneDNN, AMX where there is one)
PRODUCTS = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
a = torch.randint(-9, 9, (1024, 4096), dtype=torch.int8)
b = torch.randint(-9, 9, (4096, 4096), dtype=torch.int8)
for work in (lambda: torch._int_mm(a, b), lambda c=a.bfloat16(), d=b.bfloat16(): c @ d):
    best = 1e9
    for _ in range(20):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    print(2 * 1024 * 4096 * 4096 / best)
"""


@dataclass(frozen=True, slots=True)
class Products:
    """Operations a second, a multiplication and an addition each, with factors of these types."""

    int8: float
    bfloat16: float

    def __str__(self) -> str:
        return f"{self.int8 / 1e12:.2f} Top/s of int8, {self.bfloat16 / 1e12:.2f} of bfloat16"


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read together; the median of several tries."""
    memory = np.ones((threads, READ // 8), np.int64)
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            list(pool.map(np.max, memory))
            found.append(memory.nbytes / (time.perf_counter() - began))
    return median(found)


def product_rates(environments: Iterable[Path], threads: int) -> Products | None:
    """What torch reaches, in the first of some environments that has it."""
    for environment in environments:
        command = [str(environment / "bin" / "python"), "-c", PRODUCTS, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return Products(*map(float, done.stdout.split()))
    return None


def matrix_weights(model: Path) -> int:
    """Weights that every token of a prompt is multiplied with: all but the embeddings."""
    checkpoint = load_checkpoint(model)
    program = decoder_program(checkpoint.architecture)
    names = [name for op in program.ops if isinstance(op, Linear) for name in op.weights]
    return sum(checkpoint.weights[name].rows * checkpoint.weights[name].columns for name in names)
