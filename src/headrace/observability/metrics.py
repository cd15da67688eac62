"""Prometheus metrics of the calls, in a registry of their own."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter

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

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CALL_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MAX_MODELS = 200  # distinct (model, provider) pairs; later ones are counted as `other`
OTHER = ("other", "other")
SERVED = ("model", "provider")

log = logging.getLogger(__name__)

Reading = float | Mapping[str, float]


class Metrics:
    """Counts calls as they end. `observe` belongs to one thread, `render` may run in another."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[tuple[str, str], _Series] = {}
        self._registry.register(_Calls(self._series))

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
        self._registry.register(_Read(name, documentation, read, GaugeMetricFamily, label))

    def counter(
        self, name: str, documentation: str, read: Callable[[], Reading], label: str = "model"
    ) -> None:
        """Add a counter (`_total` is put after its name) whose value is read at each scrape."""
        self._registry.register(_Read(name, documentation, read, CounterMetricFamily, label))

    def watch_lost(self, read: Callable[[], int]) -> None:
        """Add `headrace_records_lost_total`, read from the recorder."""
        self.counter("headrace_records_lost", "Calls that are not in the log.", read)

    def render(self) -> bytes:
        """The text of /metrics, in the Prometheus text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

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
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

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
    ttft: _Tally = field(default_factory=lambda: _Tally(TTFT_BUCKETS))
    itl: _Tally = field(default_factory=lambda: _Tally(ITL_BUCKETS))
    duration: _Tally = field(default_factory=lambda: _Tally(CALL_BUCKETS))


class _Calls(Collector):
    """The series at a scrape."""

    def __init__(self, series: Mapping[tuple[str, str], _Series]) -> None:
        self._series = series

    def collect(self) -> Iterator[Metric]:
        series = dict(self._series)
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
        label: str,
    ) -> None:
        self._describe = (name, documentation)
        self._read = read
        self._family = family
        self._label = label

    def collect(self) -> Iterator[Metric]:
        try:
            value = self._read()
        except Exception:
            log.exception("The metric %s cannot be read.", self._describe[0])
            return
        if isinstance(value, Mapping):
            metric = self._family(*self._describe, labels=[self._label])
            for named, number in value.items():
                metric.add_metric([named], number)
        else:
            metric = self._family(*self._describe, value=value)
        yield metric

    def describe(self) -> Iterator[Metric]:
        yield self._family(*self._describe)
