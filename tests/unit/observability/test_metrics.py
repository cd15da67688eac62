from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.observability.metrics import MAX_MODELS, Metrics

from .calls import call


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


SERVED = (("model", "small"), ("provider", "local"))


def test_a_call_is_counted_with_its_tokens_times_and_dollars() -> None:
    metrics = Metrics()
    metrics.observe(call("a", cached_tokens=4, itl=0.02))
    metrics.observe(call("b", ttft=None))
    found = samples(metrics)
    labels = tuple(sorted((*SERVED, ("status", "ok"), ("cache", "off"))))
    assert found["headrace_calls_total", labels] == 2
    assert found["headrace_prompt_tokens_total", SERVED] == 20
    assert found["headrace_completion_tokens_total", SERVED] == 10
    assert found["headrace_cached_tokens_total", SERVED] == 4
    assert found["headrace_cost_dollars_total", SERVED] == pytest.approx(0.002)
    assert found["headrace_ttft_seconds_count", SERVED] == 1
    assert found["headrace_itl_seconds_sum", SERVED] == pytest.approx(0.02)
    assert found["headrace_call_seconds_count", SERVED] == 2


def test_the_documentation_names_every_metric() -> None:
    metrics = Metrics()
    metrics.watch_lost(lambda: 0)
    told = (Path(__file__).parents[3] / "docs" / "records.md").read_text()
    for family in text_string_to_metric_families(metrics.render().decode()):
        if not family.name.endswith("_created"):
            assert f"`{family.name}" in told


def test_names_that_callers_invent_make_no_labels() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.observe(
            call(f"c{number}", model=f"invented-{number}", served_model=None, provider=None)
        )
    assert b"invented" not in metrics.render()


def test_the_number_of_labels_is_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_MODELS + 50):
        metrics.observe(call(f"c{number}", served_model=f"m{number}"))
    models = {dict(labels).get("model") for name, labels in samples(metrics)}
    assert "other" in models
    assert len(models - {None}) == MAX_MODELS + 1


def test_readings_are_asked_for_at_each_scrape() -> None:
    metrics = Metrics()
    lost = [0]
    metrics.watch_lost(lambda: lost[0])
    metrics.gauge("headrace_engine_sequences", "Sequences.", lambda: {"small": 2, "large": 1})
    lost[0] = 3
    found = samples(metrics)
    assert found["headrace_records_lost_total", ()] == 3
    assert found["headrace_engine_sequences", (("model", "large"),)] == 1


def test_one_reading_that_fails_does_not_take_the_others_down() -> None:
    metrics = Metrics()

    def broken() -> float:
        raise RuntimeError("the engine is gone")

    metrics.gauge("headrace_broken", "Broken.", broken)
    metrics.observe(call("a"))
    assert b"headrace_calls_total" in metrics.render()
