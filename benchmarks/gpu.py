"""The CUDA backend on this machine's GPU: is it right, and how near the chip's limits.

    python benchmarks/gpu.py [--minutes 9] [--output gpu.json] [--phases decode prefill ...]

Phases run one after the other, each in a process of its own and with a share of the minutes: one
that fails, hangs or breaks the device's context takes down only itself. The file is written after
every phase, so a run that is cut leaves what it has.

- `ceilings`: what this chip gives in this run; every `share` below is a share of it.
- `checks`: every kernel against the float32 reference, on ragged steps over poisoned memory.
- `products`, `attention`, `sampling`: single kernels; the products measured here are what the rest
  of the run goes by.
- `decode`, `prefill`, `mixture`: whole steps of models of published shapes with random weights.
- `serving`, `parts`: the engine and its scheduler; what running a step ahead and drafts are worth.
- `ranks`: what a part of a model costs in a group of one; of two GPUs, what they gain.
- `peers`: transformers with a static cache, and vLLM where `--wheels` names its folder.
- `faults`: memory that runs out; compute-sanitizer, where there is one.

To take it to a machine without a network: this repository (its tracked files), and what that
machine's Python lacks of numpy, ml_dtypes, tokenizers, safetensors, jinja2, gguf, torch, triton and
transformers. Wheels of pure Python (gguf: `pip download --no-deps -d .whl gguf`) are read as they
are from the folder `.whl` beside `benchmarks`; nothing is installed or compiled, the native CPU
backend is not needed. A real model (`--model FILE`) may come in pieces, over several calls.

Without a GPU it says so and ends with status 1; `--smoke` runs every phase at tiny sizes in
Triton's interpreter, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATHS = [str(ROOT / "src"), *map(str, (ROOT / ".whl").glob("*-none-any.whl"))]
sys.path[1:1] = PATHS

# Each phase: where it is, and its share of the time; in the order of what matters most.
PHASES: dict[str, tuple[str, float]] = {
    "ceilings": ("ceilings:ceilings", 15),
    "checks": ("checks:checks", 110),
    "products": ("kernels:products", 70),
    "decode": ("steps:decode", 110),
    "prefill": ("steps:prefill", 35),
    "serving": ("serving:serving", 70),
    "attention": ("kernels:attention", 35),
    "peers": ("peers:peers", 30),
    "mixture": ("steps:mixture", 15),
    "parts": ("serving:parts", 30),
    "sampling": ("kernels:choosing", 5),
    "ranks": ("ranks:ranks", 15),
    "faults": ("faults:faults", 15),
}
TOGETHER = "checks"  # the phase that several processes share, for most of it is compiling
SHOWN = {
    "ceiling",
    "serving",
    "peer",
    "fault",
    "prefill",
    "worth",
    "overhead",
    "rank",
    "ranks",
}  # in the summary
LATE = 20.0  # seconds that a phase may need to come to its end after its time
Line = dict[str, Any]


def main() -> None:
    """Run the phases, or one of them in this process."""
    arguments = parse()
    if arguments.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not import_module("headrace.runtime.backends.devices").has_nvidia():
        sys.exit(
            "There is no NVIDIA driver here. (--smoke runs every phase at tiny sizes without.)"
        )
    if arguments.phase:
        sys.exit(run_phase(arguments))
    drive(arguments)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in the interpreter")
    parser.add_argument("--model", type=Path, help="a real model's file, to check its logits")
    parser.add_argument("--wheels", type=Path, help="a folder that vLLM was installed to")
    parser.add_argument("--phase", nargs="+", choices=PHASES, help="run these in this process")
    parser.add_argument("--seconds", type=float, default=60.0, help="of --phase")
    parser.add_argument("--share", default="0/1", help="of --phase: which of how many")
    parser.add_argument("--lines", type=Path, help="of --phase: a file to add its lines to")
    parser.add_argument("--ceilings", default="{}", help="of --phase: as JSON")
    return parser.parse_args()


def run_phase(arguments: argparse.Namespace) -> int:
    """Phases in this process; the exit status."""
    running, shapes = import_module("on_gpu.run"), import_module("on_gpu.shapes")
    share, shares = map(int, arguments.share.split("/"))
    run = running.Run(
        sizes=shapes.TINY_SIZES if arguments.smoke else shapes.FULL_SIZES,
        until=time.monotonic() + arguments.seconds,
        ceilings=running.Ceilings(**json.loads(arguments.ceilings)),
        share=share,
        shares=shares,
        model=arguments.model,
        wheels=arguments.wheels,
    )
    failed = []

    def lines() -> Iterator[Line]:
        for phase in arguments.phase:
            module, _, name = PHASES[phase][0].partition(":")
            try:
                yield from getattr(import_module(f"on_gpu.{module}"), name)(run)
            except Exception:
                failed.append(phase)
                yield {"failed": phase, "why": traceback.format_exc()[-3000:]}

    running.write_lines(arguments.lines or Path(os.devnull), lines())
    return 1 if failed else 0


def drive(arguments: argparse.Namespace) -> None:
    """All phases, each with its share of the time that is left."""
    began = time.monotonic()
    found: dict[str, Any] = {"command": sys.argv, "host": platform.node(), "phases": {}}
    ceilings: dict[str, float] = {}
    phases = [arguments.phases] if arguments.smoke else [[name] for name in arguments.phases]
    for index, group in enumerate(phases):
        weights = [sum(PHASES[name][1] for name in one) for one in phases[index:]]
        left = arguments.minutes * 60 - (time.monotonic() - began)
        box = left * weights[0] / sum(weights)
        name = ", ".join(group)
        print(f"\n== {name}: {box:.0f} s", flush=True)
        started = time.monotonic()
        lines = children(group, box, ceilings, arguments)
        ceilings |= {one["ceiling"]: one["value"] for one in lines if "ceiling" in one}
        about = [one for one in lines if "gpu" in one]
        found |= about[0] if about else {}
        found["phases"][name] = {"seconds": time.monotonic() - started, "lines": lines}
        partial = arguments.output.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(arguments.output)
    print("\n".join(["", *summary(found["phases"])]))
    print(f"written: {arguments.output}")
    if any("failed" in line for phase in found["phases"].values() for line in phase["lines"]):
        sys.exit(1)


def children(
    phases: list[str], box: float, ceilings: dict[str, float], arguments: argparse.Namespace
) -> list[Line]:
    """Run phases in processes of their own, and stop them when their time is over: the lines."""
    shares = max(1, min(8, (os.cpu_count() or 1) // 2)) if phases == [TOGETHER] else 1
    command = [sys.executable, __file__, "--phase", *phases, "--seconds", str(box)]
    command += ["--ceilings", json.dumps(ceilings)]
    for option in ("model", "wheels"):
        if getattr(arguments, option):
            command += [f"--{option}", str(getattr(arguments, option))]
    command += ["--smoke"] if arguments.smoke else []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{share}.jsonl") for share in range(shares)]
        running = [
            subprocess.Popen([*command, "--share", f"{share}/{shares}", "--lines", str(file)])
            for share, file in enumerate(files)
        ]
        until = time.monotonic() + box + LATE
        stopped = []
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                stopped.append({"failed": phases[0], "why": f"it ran for over {box + LATE:.0f} s"})
        texts = [file.read_text() for file in files if file.exists()]
    lines = [json.loads(line) for text in texts for line in text.splitlines() if line[-1:] == "}"]
    crashed = [one.returncode for one in running if one.returncode not in (0, 1, -9)]
    ended = [{"failed": phases[0], "why": f"exit status {code}"} for code in crashed]
    return lines + stopped + ended


def summary(phases: dict[str, Any]) -> list[str]:
    """What matters most, a line each: the checks' verdict, then the shares that are aimed at."""
    every = [line for phase in phases.values() for line in phase["lines"]]
    checks = [line for line in every if "check" in line]
    wrong = [line for line in checks if not line["right"]]
    found = [f"checks: {len(checks) - len(wrong)} of {len(checks)} right"]
    found += [f"  WRONG {line['check']}: {line['error']}" for line in wrong]
    for line in every:
        if "failed" in line:
            found.append(f"  FAILED {line['failed']}: {line['why'].strip().splitlines()[-1]}")
        elif line.keys() & SHOWN or (line.get("streams") in (1, 64) and "decode" in line):
            found.append("  " + text_of(line))
    return found


def text_of(line: Line) -> str:
    """A line for people."""
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in line.items()
    )


if __name__ == "__main__":
    main()
