"""Programmatic dependent launch: a kernel starts while the one before it ends.

A kernel that is launched so (`CHAINED`, compute capability 9.0 and newer) may do anything before
`wait` but touch what earlier kernels of the step write or read: those may still run. All kernels
that are launched so wait; hence where one is over, those before it are, too. One that is launched
otherwise starts when those before it are over, as ever.
"""

from __future__ import annotations

import triton
import triton.language as tl

LINE = tl.constexpr(128)  # bytes that are fetched together
AHEAD = tl.constexpr(4)  # lines of each row: what few programs can have under way without waiting


@triton.jit
def wait(CHAINED: tl.constexpr):
    """Until what earlier kernels wrote is there; then let the next kernel start.

    PTX ISA, griddepcontrol: it waits for whole grids and their writes, wherever they let go.
    """
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def fetch_rows(matrix, row, rows, width, begin):
    """Begin to bring the first lines from column `begin` on of the given rows of a matrix [rows,
    width] into the cache of the device; a row or column past the end stands for the last."""
    values: tl.constexpr = LINE * 8 // matrix.dtype.element_ty.primitive_bitwidth
    columns = tl.minimum(begin + tl.arange(0, AHEAD) * values, width - 1)
    places = matrix + tl.minimum(row, rows - 1)[:, None] * width + columns[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // $0", "=r,l", [places], dtype=tl.int32, is_pure=False, pack=1
    )
