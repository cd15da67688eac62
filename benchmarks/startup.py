"""From the command to the first token of an answer: seconds, cold and warm.

    python benchmarks/startup.py [--runs 5] [--make] [--model smollm2-135m] [--output startup]

Each run starts the server, asks for one streamed answer as soon as the port takes a connection,
and stops when its first text comes. Warm: everything was read before. Cold: the model's file, the
package and the installed libraries are first dropped from the page cache (posix_fadvise, no
rights needed; what other processes have mapped stays, so run it on a quiet machine). The model
must have been pulled. `--make` measures `make serve`, where it has been installed before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from setting import free_port, keep, serve_command, setting, started

import headrace
from headrace.cli.configuration import short_name
from headrace.registry.pull import pull

PATIENCE = 120.0  # seconds


def main() -> None:
    """Measure and print."""
    arguments = parse()
    path = pull(arguments.model)
    kinds = {"warm": list[float](), "cold": list[float]()}
    first_token(arguments.model, arguments.make)  # fills the page cache and .pyc files
    for _ in range(arguments.runs):
        kinds["warm"].append(first_token(arguments.model, arguments.make))
        drop_from_cache(path)
        kinds["cold"].append(first_token(arguments.model, arguments.make))
    about = setting()
    print(f"{about['processor']}, {about['processors']} processors, load {about['load']:.1f}")
    for kind, times in kinds.items():
        print(
            f"{kind}: first token after {statistics.median(times):.2f} s "
            f"(median of {len(times)}; {min(times):.2f} to {max(times):.2f})"
        )
    if arguments.output:
        keep(arguments.output, {"setting": about, "model": arguments.model, "seconds": kinds})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--make", action="store_true", help="measure `make serve`")
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    return parser.parse_args()


def first_token(model: str, make: bool) -> float:
    """Seconds from the command to the first text."""
    port = free_port()
    command = serve_command(port, model)
    if make:
        command = ["make", "--silent", "serve", f"ARGS=--port {port} --model {model}"]
    began = time.perf_counter()
    with started(command) as process:
        while time.perf_counter() - began < PATIENCE:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with status {process.returncode}")
            try:
                ask(port, short_name(model))
            except OSError:
                time.sleep(0.01)
            else:
                return time.perf_counter() - began
    raise SystemExit(f"no token within {PATIENCE:.0f} s")


def ask(port: int, model: str) -> None:
    """Return when the first text of an answer has come. Raises OSError where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": True,
        "max_tokens": 8,
    }
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    for line in response:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            if choices and choices[0]["delta"].get("content"):
                connection.close()
                return
    raise SystemExit(f"the server answered {response.status} without text")


def drop_from_cache(model: Path) -> None:
    """Take what a start reads out of the page cache."""
    os.sync()  # only clean pages can be dropped
    for path in read_at_start(model):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_at_start(model: Path) -> Iterator[Path]:
    """The model's files, the package's and the installed libraries'."""
    places = [Path(headrace.__file__).parent, Path(sysconfig.get_path("purelib"))]
    if model.is_dir():
        places.append(model)
    else:
        yield model
    for place in places:
        yield from (path for path in place.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
