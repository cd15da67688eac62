"""The GPU's benchmark runs to its end where there is no GPU, at tiny sizes: every phase of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
ABSENT = ("msgspec", "llguidance", "starlette", "uvicorn", "sqlalchemy")  # on a bare machine


def test_every_phase_runs_without_a_gpu_and_without_the_platform(tmp_path: Path) -> None:
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text("raise ImportError(__name__)")
    output = tmp_path / "gpu.json"
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--minutes", "3", "--output", str(output)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (phase,) = json.loads(output.read_text())["phases"].values()
    lines = phase["lines"]
    assert all(line["right"] for line in lines if "check" in line)
    for kind in ("ceiling", "check", "product", "attention", "sampling", "decode", "prefill"):
        assert any(kind in line for line in lines), kind
    for kind in ("serving", "worth", "peer", "overhead", "rank"):
        assert any(kind in line for line in lines), kind
    (fault,) = [line for line in lines if "fault" in line]
    assert fault["others as ever"]
    assert fault["and afterwards"]
