"""Prometheus metrics of the calls, in a registry of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.observability.record import CallRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CALL_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MAX_MODELS = 200  # distinct (model, provider) pairs; later ones are counted as `other`

log = logging.getLogger(__name__)

Reading = float | Mapping[str, float]


class Metrics:
    """Counts calls as they end. `observe` belongs to one thread, `render` may run in another."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._pairs: set[tuple[str, str]] = set()
        served = ("model", "provider")
        self._calls = self._counter(
            "headrace_calls", "Calls that ended.", (*served, "status", "cache")
        )
        self._prompt = self._counter("headrace_prompt_tokens", "Prompt tokens.", served)
        self._completion = self._counter("headrace_completion_tokens", "Output tokens.", served)
        self._cached = self._counter(
            "headrace_cached_tokens", "Prompt tokens that were not computed again.", served
        )
        self._cost = self._counter("headrace_cost_dollars", "Cost in US dollars.", served)
        self._ttft = self._histogram(
            "headrace_ttft_seconds", "Time to the first token.", TTFT_BUCKETS
        )
        self._itl = self._histogram(
            "headrace_itl_seconds", "Mean time between tokens of a call.", ITL_BUCKETS
        )
        self._duration = self._histogram(
            "headrace_call_seconds", "Time from request to end of answer.", CALL_BUCKETS
        )

    def observe(self, record: CallRecord) -> None:
        """Count one call. Labels never come from the caller's words."""
        served = self._labels(record)
        self._calls.labels(*served, record.status, record.cache).inc()
        for counter, amount in (
            (self._prompt, record.prompt_tokens),
            (self._completion, record.completion_tokens),
            (self._cached, record.cached_tokens),
            (self._cost, record.cost),
        ):
            if amount > 0:
                counter.labels(*served).inc(amount)
        for histogram, seconds in (
            (self._ttft, record.ttft),
            (self._itl, record.itl),
            (self._duration, record.duration),
        ):
            if seconds is not None:
                histogram.labels(*served).observe(seconds)

    def gauge(self, name: str, documentation: str, read: Callable[[], Reading]) -> None:
        """Add a gauge whose value is read at each scrape.

        A mapping gives one value per label `model`. Raises ValueError if the name is taken.
        """
        self._registry.register(_Read(name, documentation, read, GaugeMetricFamily))

    def counter(self, name: str, documentation: str, read: Callable[[], Reading]) -> None:
        """Add a counter (`_total` is put after its name) whose value is read at each scrape."""
        self._registry.register(_Read(name, documentation, read, CounterMetricFamily))

    def watch_lost(self, read: Callable[[], int]) -> None:
        """Add `headrace_records_lost_total`, read from the recorder."""
        self.counter("headrace_records_lost", "Calls that are not in the log.", read)

    def render(self) -> bytes:
        """The text of /metrics, in the Prometheus text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def _labels(self, record: CallRecord) -> tuple[str, str]:
        if record.served_model is None:
            return ("none", record.provider or "none")
        pair = (record.served_model, record.provider or "none")
        if pair not in self._pairs:
            if len(self._pairs) >= MAX_MODELS:
                return ("other", "other")
            self._pairs.add(pair)
        return pair

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, documentation, labels, registry=self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        labels = ("model", "provider")
        return Histogram(name, documentation, labels, buckets=buckets, registry=self._registry)


class _Read(Collector):
    """A metric whose value is asked for at each scrape; left out where it cannot be read."""

    def __init__(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Reading],
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    ) -> None:
        self._describe = (name, documentation)
        self._read = read
        self._family = family

    def collect(self) -> Iterator[Metric]:
        try:
            value = self._read()
        except Exception:
            log.exception("The metric %s cannot be read.", self._describe[0])
            return
        if isinstance(value, Mapping):
            metric = self._family(*self._describe, labels=["model"])
            for model, number in value.items():
                metric.add_metric([model], number)
        else:
            metric = self._family(*self._describe, value=value)
        yield metric

    def describe(self) -> Iterator[Metric]:
        yield self._family(*self._describe)
