"""What a benchmark stands on: the machine, the versions, and a server of our own to measure."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headrace.runtime.processors import usable_processors

RESULTS = Path(__file__).parent / "results"


def setting() -> dict[str, Any]:
    """The machine and the versions, to stand beside every figure."""
    about = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in about.splitlines() if "model name" in line]
    return {
        "processor": names[0] if names else platform.machine(),
        "processors": usable_processors(),
        "load": os.getloadavg()[0],  # of everything else that ran when we began
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "headrace": version("headrace") if _installed() else "from the source tree",
        "command": " ".join(["python", *sys.argv]),
    }


def keep(name: str, content: dict[str, Any]) -> None:
    """Write `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written: {path}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process with all its children; they end with the block."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # `make` and its children are one group
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def serve_command(port: int, model: str) -> list[str]:
    """`headrace serve` by this Python."""
    command = [sys.executable, "-m", "headrace.cli.main", "serve"]
    return [*command, "--port", str(port), "--model", model]


def _installed() -> bool:
    try:
        version("headrace")
    except ModuleNotFoundError:
        return False
    return True
