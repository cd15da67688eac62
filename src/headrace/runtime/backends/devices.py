"""What devices this machine has, told without importing what drives them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))


def interpreted() -> bool:
    """Whether Triton's kernels are to run on the CPU, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "") not in ("", "0")


def gpu_memory() -> int | None:
    """Bytes of the first GPU, as its driver's library tells them; None where there is none.

    By NVML, a part of every driver: nvmlDeviceGetMemoryInfo's record is total, free and used.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    if not has_nvidia() or not shown.isdigit():
        return None
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, sizes = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()
    if driver.nvmlInit_v2():
        return None
    try:
        failed = driver.nvmlDeviceGetHandleByIndex_v2(int(shown), ctypes.byref(device))
        failed = failed or driver.nvmlDeviceGetMemoryInfo(device, sizes)
    finally:
        driver.nvmlShutdown()
    return None if failed else sizes[0]


def has_nvidia() -> bool:
    """Whether there is an NVIDIA driver."""
    return any(path.exists() for path in NVIDIA)
