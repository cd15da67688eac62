"""What recording a call costs the request path, and how fast records reach the store.

    python benchmarks/records.py [--calls 20000] [--rate 1000] [--directory DIR] [--output FILE]

Three measurements in one run, on records with about 1 KB of input and 1 KB of output:
- `record`: microseconds of one `Recorder.record`, at a steady rate while the mover works;
- the peer, at the same rate: one INSERT and COMMIT per call by sqlite3 itself (WAL,
  synchronous=NORMAL), the usual way to log a call before it is answered;
- `mover`: records per second from the journal to the store, from a full journal;
and how late an asyncio timer of 1 ms fires meanwhile, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headrace.observability.record import AttemptRecord, CallRecord
from headrace.observability.recorder import Recorder


def sample(number: int) -> CallRecord:
    """A call of ordinary size."""
    attempt = AttemptRecord(
        model="small", provider="local", reason="first of the route", started=0.0, duration=0.8
    )
    return CallRecord(
        id=f"call-{number:012}",
        started_at=time.time(),
        tenant="default",
        endpoint="chat",
        model="small",
        stream=True,
        status="ok",
        http_status=200,
        duration=0.8,
        route="model:small",
        version="0123456789abcdef",
        served_model="small",
        provider="local",
        attempts=(attempt,),
        ttft=0.05,
        itl=0.02,
        prompt_tokens=250,
        completion_tokens=200,
        cost=0.0001,
        finish_reason="stop",
        input={"messages": [{"role": "user", "content": "lorem ipsum " * 85}]},
        output={"text": "dolor sit amet " * 68},
    )


def quantiles(values: list[float], scale: float) -> dict[str, float]:
    """p50, p99 and p99.9 of `values`, times `scale`."""
    ordered = sorted(values)
    last = len(ordered) - 1
    names = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {name: round(ordered[round(q * last)] * scale, 2) for name, q in names.items()}


async def paced(
    write: Callable[[CallRecord], object], calls: int, rate: int
) -> tuple[list[float], list[float]]:
    """Seconds of each `write`, and how late each timer was, over `calls` at `rate` a second."""
    costs: list[float] = []
    late: list[float] = []
    per_tick = max(1, rate // 1000)
    records = [sample(number) for number in range(calls)]
    while records:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - due)
        for record in records[-per_tick:]:
            begun = time.perf_counter()
            write(record)
            costs.append(time.perf_counter() - begun)
        del records[-per_tick:]
    return costs, late


def opened_peer(path: Path) -> sqlite3.Connection:
    """A database into which each call is inserted and committed by itself."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE calls (id TEXT PRIMARY KEY, record BLOB)")
    return connection


def moved(directory: Path, calls: int) -> tuple[float, float]:
    """Records per second by the mover, and by `record` in a tight loop."""
    recorder = Recorder.open(directory)
    records = [sample(number) for number in range(calls)]
    begun = time.perf_counter()
    for record in records:
        recorder.record(record)
    appended = time.perf_counter()
    if not recorder.flush(timeout=300.0) or recorder.lost:
        raise SystemExit(f"records were lost: {recorder.lost}")
    done = time.perf_counter()
    recorder.close()
    return calls / (done - begun), calls / (appended - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rate", type=int, default=1000, help="calls per second while pacing")
    parser.add_argument("--directory", type=Path, help="where to write (default: a new one)")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        place = Path(name)
        pace = (options.calls, options.rate)
        _, quiet = asyncio.run(paced(lambda _: None, *pace))
        recorder = Recorder.open(place / "paced")
        costs, late = asyncio.run(paced(recorder.record, *pace))
        recorder.close()
        connection = opened_peer(place / "peer.db")

        def insert(record: CallRecord) -> None:
            row = (record.id, msgspec.json.encode(record))
            connection.execute("INSERT INTO calls VALUES (?, ?)", row)

        peer, peer_late = asyncio.run(paced(insert, *pace))
        connection.close()
        mover, burst = moved(place / "burst", options.calls)
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "record_us": quantiles(costs, 1e6),
        "peer_insert_us": quantiles(peer, 1e6),
        "late_ms_without": quantiles(quiet, 1e3),
        "late_ms_recording": quantiles(late, 1e3),
        "late_ms_peer": quantiles(peer_late, 1e3),
        "mover_per_second": round(mover),
        "burst_per_second": round(burst),
    }
    figures["ratio_p50"] = round(figures["peer_insert_us"]["p50"] / figures["record_us"]["p50"], 2)
    figures["ratio_p99"] = round(figures["peer_insert_us"]["p99"] / figures["record_us"]["p99"], 2)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
