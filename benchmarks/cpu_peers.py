"""Headrace beside other engines on this machine's processors: the same work, in turn.

    python benchmarks/cpu_peers.py --models DIR --peer llamacpp=DIR/llamacpp --peer vllm=DIR/vllm \\
        [--model smollm2-q4_1] [--only stream ttft batch16 ...] [--beside "fa off" int4 ...] \\
        [--output cpu_peers]

`benchmarks/peers/setup.sh DIR` makes the environments and the models; nothing is installed here. A
peer whose environment is not given, or a model that is not there, is left out. `--only` with a name
repeats one group of columns, `--beside` runs only those peers whose name has one of these texts. So
a table can be made by runs of a minute or two with one `--output`: a figure takes the place of the
same variant's, and a ratio is always of two figures of one run. The load of the server column is
that of the best peer known by then: begin with that one.

All run as many threads as this process has processors, and answer prompts of random tokens, new
ones each time, by exactly the same number of tokens, greedily. The engines take turns (A B C, A B
C, ...), the figures are medians over the rounds. An engine with several settings, or that reads
several forms of the model, is given the best of them in each column. What each ran is printed.

The share beside a figure says what is left: for a stream, the bytes of the weights times the tokens
per second over the read bandwidth measured here (KV is not counted; where a last cache holds the
weights it can pass 100%); for a first token, the prompt's multiplications over the rate of int8
products that torch reaches here (AMX, where there is one), in the first environment that has it.
That of bfloat16, which several of the engines compute prompts in, is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from peers.arrivals import running, saturation, under_load
from peers.catalogue import MODELS, Variant, present, weight_bytes
from peers.driver import Driver, started
from peers.figures import MEMORY, NEW, SATURATION, START, TIMED, UNDER_LOAD, Column, Shape
from peers.protocol import Setup
from peers.rates import Products, matrix_weights, product_rates, read_bandwidth
from peers.report import OURS, lines, merged, ours, row
from peers.servers import SERVERS
from setting import RESULTS, keep, setting

from headrace.runtime.processors import usable_processors

GROUPS = ("stream", "ttft", "batch4", "batch16", "batch32", "server", "memory", "start")
ALONE, MANY = (1, 2304), (32, 288)  # sequences, tokens of each
WARM, OPENING, MEMORABLE = Shape(1, 32, 8, 1), Shape(1, 32, 1, 1), Shape(1, 512, NEW, 1)
REQUESTS = 48  # of a round with a server
LOAD = 0.7  # of what the best peer can do
SERVED = (*SERVERS, "openvino")  # the last in its own process: it has no server


@dataclass(slots=True)
class Bench:
    """What is measured with what, and what was found."""

    variants: list[Variant]
    models: Path
    environments: Mapping[str, Path]
    rounds: int
    threads: int = field(default_factory=usable_processors)
    dice: random.Random = field(default_factory=random.Random)
    found: dict[Column, dict[Variant, list[float]]] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)  # what each variant ran as
    known: float = 0.0  # tokens per second of the best peer's server in earlier runs

    @contextmanager
    def start(self, variant: Variant, size: tuple[int, int]) -> Iterator[Driver]:
        """A driver of a variant, with room for (sequences, tokens of each)."""
        setup = self.setup(variant, size)
        with started(variant.engine, self.environments[variant.engine], setup) as driver:
            self.about[variant.name].update(driver.about)
            yield driver

    def setup(self, variant: Variant, size: tuple[int, int]) -> Setup:
        """What a variant loads."""
        model = str(self.models / variant.file)
        return Setup(model, self.threads, *size, dict(variant.options))

    def note(self, column: Column, variant: Variant, figure: float) -> None:
        """Keep a figure of one round."""
        self.found.setdefault(column, {}).setdefault(variant, []).append(figure)
        print(f"  {column.name}: {variant.name} {figure:.1f} {column.unit}", flush=True)


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine can do, measured: bytes read a second, products' operations a second."""

    threads: int
    bandwidth: float
    products: Products | None

    def __str__(self) -> str:
        found = f"{self.threads} threads, reads {self.bandwidth / 1e9:.1f} GB/s"
        return f"{found}, products {self.products}" if self.products else found

    def limit(self, column: Column, size: int, weights: int) -> float | None:
        """The best that a column's figure could be; None where nothing says.

        `size`: bytes of the file; `weights`: numbers that each token of a prompt is multiplied by.
        """
        if column.group == "stream":
            return self.bandwidth / size
        if column.group == "ttft" and self.products:
            return 1e3 * 2 * weights * TIMED[column][0].length / self.products.int8
        return None


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends, too
    arguments = parse()
    about = setting()
    environments = {OURS: Path(sys.prefix)}
    environments |= {name: Path(path) for name, _, path in map(split, arguments.peer)}
    bench = Bench([], arguments.models, environments, arguments.rounds)
    for variant, lacking in present(arguments.model, arguments.models, environments):
        if not chosen(variant, arguments.beside):
            continue
        if lacking:
            print(f"left out: {variant.name}: {lacking}")
        else:
            bench.variants.append(variant)
            bench.about[variant.name] = {"command": about["command"]}
    machine = Machine(
        bench.threads,
        read_bandwidth(bench.threads),
        product_rates(environments.values(), bench.threads),
    )
    print(f"{about['processor']}, load {about['load']:.1f}, {machine}")
    earlier = results(arguments.output).get(arguments.model, {})
    saturated = earlier.get(SATURATION.name, {}).get("figures", {})
    bench.known = max((saturated[name] for name in saturated if not ours(name)), default=0.0)
    weights = matrix_weights(arguments.models / bench.variants[0].file)
    for group in arguments.only:
        bench.found.clear()
        MEASURES.get(group, columns)(bench, group)
        rows = report(bench, machine, weights)
        for made in rows:
            print("\n".join(lines(made)), flush=True)
        if arguments.output:
            ran = {"setting": about, "machine": asdict(machine), "rounds": bench.rounds}
            added(arguments.output, arguments.model, rows, {**ran, "engines": bench.about})


def chosen(variant: Variant, texts: Sequence[str]) -> bool:
    """Whether a variant is to run: ours is always; a peer, where its name has one of the texts."""
    return ours(variant.name) or not texts or any(text in variant.name for text in texts)


def report(bench: Bench, machine: Machine, weights: int) -> list[dict[str, Any]]:
    """The row of each column: medians over the rounds, with their shares of what is possible."""
    rows = []
    for column, figures in bench.found.items():
        medians = {variant: median(rounds) for variant, rounds in figures.items()}
        shares = {}
        for variant, figure in medians.items():
            limit = machine.limit(column, weight_bytes(bench.models / variant.file), weights)
            if limit:
                shares[variant.name] = round(
                    figure / limit if column.more_is_better else limit / figure, 2
                )
        rows.append(row(column, medians, shares))
    return rows


def results(name: str | None) -> dict[str, Any]:
    """What the file of results of this name keeps."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if name and path.exists() else {}


def added(name: str, model: str, rows: list[dict[str, Any]], ran: dict[str, Any]) -> None:
    """Keep rows in the file of results, beside what it has of variants that did not run now."""
    content = results(name)
    columns = content.setdefault(model, {})
    for made in rows:
        before = columns.get(made["column"], {})
        engines = before.get("ran", {}).get("engines", {}) | ran["engines"]
        columns[made["column"]] = merged(before, made) | {"ran": ran | {"engines": engines}}
    keep(name, content)


def split(pair: str) -> tuple[str, str, str]:
    """NAME=PATH."""
    return pair.partition("=")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder that setup.sh filled")
    parser.add_argument("--peer", action="append", default=[], help="ENGINE=ENVIRONMENT")
    parser.add_argument("--model", choices=MODELS, default="smollm2-q4_1")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--beside", nargs="+", default=(), help="texts that peers' names have")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    return parser.parse_args()


def turns(bench: Bench) -> Iterator[Variant]:
    """Every variant once a round; every other round backwards, so that none is always first."""
    for turn in range(bench.rounds):
        yield from bench.variants if turn % 2 else bench.variants[::-1]


def columns(bench: Bench, group: str) -> None:
    """The columns of a group, with all engines loaded."""
    wanted = {column: how for column, how in TIMED.items() if column.group == group}
    with ExitStack() as stack:
        drivers = {}
        for variant in bench.variants:
            size = MANY if group.startswith("batch") else ALONE
            drivers[variant] = stack.enter_context(bench.start(variant, size))
            print(f"{variant.name}: {drivers[variant].about}")
            drivers[variant].ask(WARM.draw(bench.dice))
        for column, (shape, figure) in wanted.items():
            for variant in turns(bench):
                bench.note(column, variant, figure(drivers[variant].ask(shape.draw(bench.dice))))


def memory(bench: Bench, group: str) -> None:
    """The most memory that each engine alone takes over one stream."""
    for variant in bench.variants:
        with bench.start(variant, ALONE) as driver:
            driver.ask(MEMORABLE.draw(bench.dice))
            bench.note(MEMORY, variant, driver.peak() / 1e6)


def start(bench: Bench, group: str) -> None:
    """From the start of each engine's process to its first token, its model in the page cache."""
    for variant in turns(bench):
        read_whole(bench.models / variant.file)
        work = OPENING.draw(bench.dice)
        began = time.perf_counter()
        with bench.start(variant, ALONE) as driver:
            driver.ask(work)
            bench.note(START, variant, time.perf_counter() - began)


def read_whole(model: Path) -> None:
    """Have the system keep a file, or those of a folder, in memory."""
    for path in [model] if model.is_file() else model.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def server(bench: Bench, group: str) -> None:
    """Each server at its most, then all at the arrivals that the best peer can just bear."""
    with ExitStack() as stack:
        plays = {}
        for variant in bench.variants:
            if variant.engine in SERVED:
                setup = bench.setup(variant, MANY)
                place = bench.environments[variant.engine]
                plays[variant] = running(stack, variant, place, setup)
        for variant, play in plays.items():
            bench.note(SATURATION, variant, saturation(play, REQUESTS, bench.dice))
        found = bench.found[SATURATION].items()
        most = max([bench.known, *(rounds[0] for one, rounds in found if one.engine != OURS)])
        rate = LOAD * most / NEW
        for variant in turns(bench):
            if variant in plays and rate:
                bench.about[variant.name]["arrivals a second"] = round(rate, 2)
                figures = under_load(plays[variant], REQUESTS, rate, bench.dice)
                for column, figure in zip(UNDER_LOAD, figures, strict=True):
                    bench.note(column, variant, figure)


MEASURES: dict[str, Callable[[Bench, str], None]] = {
    "server": server,
    "memory": memory,
    "start": start,
}


if __name__ == "__main__":
    main()
