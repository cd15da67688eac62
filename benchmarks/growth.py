"""Whether the gateway's memory grows with the calls that it has answered.

    python benchmarks/growth.py [--calls 200000] [--rounds 10] [--output growth]

All that a call does is on: a key with limits and a budget, routing, records and metrics. After
each round the resident memory of the server is printed, when what was recorded has come to rest in
the store; some calls of each round are streams. A server fills pools and caches at first: what
counts is the growth after the first round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from gateway_peers import HERE, memory_of, put_load, running
from gateways.peers import Place, headrace
from setting import free_port, keep, setting

AT_ONCE = 64
STREAMS = 100  # of each round
SECONDS = 2.0  # that are asked for at a time
REST = 1.5  # seconds


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    about = setting()
    rows = []
    with ExitStack() as stack:
        port = free_port()
        upstream = [sys.executable, str(HERE / "upstream.py"), str(port)]
        stack.enter_context(running(upstream, port, {}))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = free_port()
        peer = headrace(Place(sys.executable, folder, ours, f"http://127.0.0.1:{port}"))
        process = stack.enter_context(running(peer.command, ours, peer.environment))
        answered = 0
        for number in range(1, arguments.rounds + 1):
            loads = [("streams", float(STREAMS), 0.0)]
            while answered < arguments.calls * number / arguments.rounds:
                work = loads.pop() if loads else ("closed", float(AT_ONCE), SECONDS)
                found = put_load(ours, work, peer.headers)
                if found["failed"] or found["broken"]:
                    raise SystemExit(f"calls failed: {found}")
                answered += int(found["answered"])
            time.sleep(REST)
            rows.append({"answered": answered, "memory_bytes": memory_of(process.pid)})
            print(f"{answered:>8} calls {rows[-1]['memory_bytes'] / 1e6:8.1f} MB", flush=True)
    grown = rows[-1]["memory_bytes"] - rows[0]["memory_bytes"]
    print(f"grown by {grown / 1e6:.1f} MB after the first round")
    if arguments.output:
        keep(arguments.output, {"setting": about, "rows": rows})


if __name__ == "__main__":
    main()
