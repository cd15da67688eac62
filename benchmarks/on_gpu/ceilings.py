"""What the chip gives in this run: to read, to copy, to multiply, to launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton

from .run import Line, Run


def ceilings(run: Run) -> Iterator[Line]:
    """Bytes a second, operations a second, seconds of a launch; a line each, by the field's name
    in `run.Ceilings`."""
    device, square = run.device, run.sizes.square
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "none: the interpreter"
    yield {"gpu": name, "torch": torch.__version__, "triton": triton.__version__}
    left, right = torch.ones(2, run.sizes.read // 8, dtype=torch.float32, device=device)
    yield {"ceiling": "read", "value": 4 * len(left) / run.seconds(left.sum)}
    yield {"ceiling": "copy", "value": 8 * len(left) / run.seconds(lambda: left.copy_(right))}
    right = torch.empty(0)
    left = torch.randn(square, square, device=device).bfloat16()
    yield {"ceiling": "products", "value": 2 * square**3 / run.seconds(lambda: left @ left)}
    if device.type == "cuda":
        yield {"ceiling": "products_fp8", "value": 2 * square**3 / run.seconds(fp8_product(left))}
    one = torch.zeros(1, device=device)
    yield {
        "ceiling": "launch",
        "value": run.seconds(lambda: [one.add_(1) for _ in range(100)]) / 100,
    }
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(100):
                one.add_(1)
        yield {"ceiling": "replay", "value": run.seconds(graph.replay)}


def fp8_product(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The library's product of E4M3 with E4M3, each with one scale."""
    codes = values.to(torch.float8_e4m3fn)
    scale = torch.ones((), device=values.device)
    return lambda: torch._scaled_mm(
        codes, codes.T, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
    )
