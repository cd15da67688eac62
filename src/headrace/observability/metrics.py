"""Prometheus metrics of the calls, in a registry of their own."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from headrace.observability.record import CallRecord
from headrace.observability.snapshots import Snapshots

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CALL_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MAX_MODELS = 200  # distinct (model, provider) pairs; later ones are counted as `other`
OTHER = ("other", "other")
SERVED = ("model", "provider")

log = logging.getLogger(__name__)

Names = tuple[str, str]  # of the model that served and its provider
Reading = float | Mapping[str, float]


class Metrics:
    """Counts calls as they end. `observe` belongs to one thread, `render` may run in another.

    With `snapshots` it is one of several processes: each counts on from what the one before it at
    its place had counted, says what it has by `say`, and renders the sum of all.
    """

    def __init__(self, snapshots: Snapshots | None = None) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[Names, _Series] = {}
        self._reads: dict[str, _Read] = {}
        self._before: Mapping[str, Reading] = {}
        self._snapshots = snapshots
        if snapshots is not None and (said := snapshots.join(snapshots.me)) is not None:
            before = _decode(said)
            self._series, self._before = before.series, before.counted
        self._rendering = threading.Lock()
        self._others: list[_Said] = []
        self._registry.register(_Calls(self._whole))

    def observe(self, record: CallRecord) -> None:
        """Count one call. Labels never come from the caller's words."""
        series = self._series_of(record)
        outcome = record.status, record.cache
        series.calls[outcome] = series.calls.get(outcome, 0) + 1
        series.prompt += record.prompt_tokens
        series.completion += record.completion_tokens
        series.cached += record.cached_tokens
        series.cost += record.cost or 0.0
        for tally, seconds in (
            (series.ttft, record.ttft),
            (series.itl, record.itl),
            (series.duration, record.duration),
        ):
            if seconds is not None:
                tally.add(seconds)

    def gauge(
        self, name: str, documentation: str, read: Callable[[], Reading], label: str = "model"
    ) -> None:
        """Add a gauge whose value is read at each scrape.

        A mapping gives one value per value of `label`. Raises ValueError if the name is taken.
        """
        self._watch(_Read(name, documentation, read, GaugeMetricFamily, self._elsewhere, label))

    def counter(
        self, name: str, documentation: str, read: Callable[[], Reading], label: str = "model"
    ) -> None:
        """Add a counter (`_total` is put after its name) whose value is read at each scrape."""
        before = self._before.get(name)
        if before is not None:
            now = read
            read = lambda: _sum(now(), before)  # noqa: E731
        self._watch(_Read(name, documentation, read, CounterMetricFamily, self._elsewhere, label))

    def watch_lost(self, read: Callable[[], int]) -> None:
        """Add `headrace_records_lost_total`, read from the recorder."""
        self.counter("headrace_records_lost", "Calls that are not in the log.", read)

    def render(self) -> bytes:
        """The text of /metrics, in the Prometheus text format (`CONTENT_TYPE`)."""
        with self._rendering:
            if self._snapshots is not None:
                self._others = [_decode(said) for said in self._snapshots.others()]
            return generate_latest(self._registry)

    @property
    def shared(self) -> bool:
        """Whether other processes are told."""
        return self._snapshots is not None

    def say(self) -> None:
        """Tell the other processes what this one has counted."""
        if self._snapshots is None:
            return
        counted: dict[str, Reading] = {}
        gauged: dict[str, Reading] = {}
        for name, one in self._reads.items():
            with suppress(Exception):  # told where it is rendered
                (counted if one.counts else gauged)[name] = one.read()
        self._snapshots.say(_encode(_Said(self._series, counted, gauged)))

    def _watch(self, read: _Read) -> None:
        self._registry.register(read)
        self._reads[read.name] = read

    def _whole(self) -> dict[Names, _Series]:
        """The series of all processes."""
        whole = dict(self._series)
        for said in self._others:
            for names, series in said.series.items():
                whole[names] = series.and_of(whole.get(names))
        return whole

    def _elsewhere(self, name: str) -> list[Reading]:
        """What other processes read of a gauge or counter."""
        found = ((said.counted | said.gauged).get(name) for said in self._others)
        return [reading for reading in found if reading is not None]

    def _series_of(self, record: CallRecord) -> _Series:
        served = record.served_model, record.provider
        names = served[0] or "none", served[1] or "none"
        series = self._series.get(names)
        if series is None:
            if len(self._series) >= MAX_MODELS and served[0] is not None:
                names = OTHER
            series = self._series.setdefault(names, _Series())
        return series


@dataclass(slots=True)
class _Tally:
    """A histogram: how many values were under each bound, the last without one, and their sum."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def of(cls, bounds: tuple[float, ...]) -> _Tally:
        return cls(bounds, [0] * (len(bounds) + 1))

    def and_of(self, other: _Tally) -> _Tally:
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return _Tally(self.bounds, counts, self.total + other.total)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Pairs of a bound and how many values were not over it, as Prometheus wants them."""
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


@dataclass(slots=True)
class _Series:
    """What is counted of one (model, provider). Counted here and not in the client library's own
    counters: those cost a call some 40 microseconds."""

    calls: dict[tuple[str, str], int] = field(default_factory=dict)  # by status and cache
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cost: float = 0.0
    ttft: _Tally = field(default_factory=lambda: _Tally.of(TTFT_BUCKETS))
    itl: _Tally = field(default_factory=lambda: _Tally.of(ITL_BUCKETS))
    duration: _Tally = field(default_factory=lambda: _Tally.of(CALL_BUCKETS))

    def and_of(self, other: _Series | None) -> _Series:
        """The sum of both."""
        if other is None:
            return self
        outcomes = self.calls.keys() | other.calls.keys()
        return _Series(
            {one: self.calls.get(one, 0) + other.calls.get(one, 0) for one in outcomes},
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
            self.cost + other.cost,
            self.ttft.and_of(other.ttft),
            self.itl.and_of(other.itl),
            self.duration.and_of(other.duration),
        )


@dataclass(slots=True)
class _Said:
    """What one process tells the others."""

    series: dict[Names, _Series]
    counted: dict[str, Reading]
    gauged: dict[str, Reading]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Said).decode


class _Calls(Collector):
    """The series at a scrape."""

    def __init__(self, whole: Callable[[], dict[Names, _Series]]) -> None:
        self._whole = whole

    def collect(self) -> Iterator[Metric]:
        series = self._whole()
        calls = CounterMetricFamily(
            "headrace_calls", "Calls that ended.", labels=[*SERVED, "status", "cache"]
        )
        for names, one in series.items():
            for outcome, count in dict(one.calls).items():
                calls.add_metric([*names, *outcome], count)
        yield calls
        for name, told, read in COUNTED:
            counter = CounterMetricFamily(name, told, labels=SERVED)
            for names, one in series.items():
                counter.add_metric(names, read(one))
            yield counter
        for name, told, tally_of in TIMED:
            histogram = HistogramMetricFamily(name, told, labels=SERVED)
            for names, one in series.items():
                tally = tally_of(one)
                histogram.add_metric(names, tally.buckets(), tally.total)
            yield histogram


COUNTED: tuple[tuple[str, str, Callable[[_Series], float]], ...] = (
    ("headrace_prompt_tokens", "Prompt tokens.", attrgetter("prompt")),
    ("headrace_completion_tokens", "Output tokens.", attrgetter("completion")),
    (
        "headrace_cached_tokens",
        "Prompt tokens that were not computed again.",
        attrgetter("cached"),
    ),
    ("headrace_cost_dollars", "Cost in US dollars.", attrgetter("cost")),
)
TIMED: tuple[tuple[str, str, Callable[[_Series], _Tally]], ...] = (
    ("headrace_ttft_seconds", "Time to the first token.", attrgetter("ttft")),
    ("headrace_itl_seconds", "Mean time between tokens of a call.", attrgetter("itl")),
    ("headrace_call_seconds", "Time from request to end of answer.", attrgetter("duration")),
)


class _Read(Collector):
    """A metric whose value is asked for at each scrape; left out where it cannot be read."""

    def __init__(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Reading],
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        elsewhere: Callable[[str], list[Reading]],
        label: str,
    ) -> None:
        self.name = name
        self.read = read
        self.counts = family is CounterMetricFamily
        self._describe = (name, documentation)
        self._family = family
        self._elsewhere = elsewhere
        self._label = label

    def collect(self) -> Iterator[Metric]:
        try:
            value = self.read()
        except Exception:
            log.exception("The metric %s cannot be read.", self._describe[0])
            return
        for other in self._elsewhere(self.name):
            value = _sum(value, other)
        if isinstance(value, Mapping):
            metric = self._family(*self._describe, labels=[self._label])
            for named, number in value.items():
                metric.add_metric([named], number)
        else:
            metric = self._family(*self._describe, value=value)
        yield metric

    def describe(self) -> Iterator[Metric]:
        yield self._family(*self._describe)


def _sum(one: Reading, other: Reading) -> Reading:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {*one, *other}}
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        return one  # it was another reading once
    return one + other
