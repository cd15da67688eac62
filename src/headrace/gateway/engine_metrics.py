"""The engines' state and work on /metrics, by the configured name of their model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter

from headrace.config.schema import LOCAL, Configuration
from headrace.observability.metrics import Metrics
from headrace.providers.residency import Residency
from headrace.runtime.process import EngineProcess
from headrace.runtime.request import Counters

GAUGES: Mapping[str, tuple[str, str]] = {
    "running": ("headrace_engine_running", "Sequences that run now."),
    "waiting": ("headrace_engine_waiting", "Sequences that wait for room."),
    "places": ("headrace_engine_places", "Sequences that may run at once."),
    "queued_tokens": ("headrace_engine_queued_tokens", "Prompt tokens still to be computed."),
    "chunk_tokens": (
        "headrace_engine_chunk_tokens",
        "Prompt tokens that a step computes beside sequences that decode.",
    ),
    "prefill_token_seconds": (
        "headrace_engine_prefill_token_seconds",
        "Time that computing a prompt token takes; 0 until it is known.",
    ),
    "step_seconds": ("headrace_engine_step_seconds", "Time of a step that only decodes."),
    "turn_seconds": (
        "headrace_engine_turn_seconds",
        "Time from one end of a sequence to the next, while others wait for room.",
    ),
    "kv_block_tokens": ("headrace_engine_kv_block_tokens", "Positions of a KV block."),
    "kv_blocks_used": ("headrace_engine_kv_blocks_used", "KV blocks that sequences hold."),
    "kv_blocks_total": ("headrace_engine_kv_blocks", "KV blocks there are."),
    "kv_host_used": ("headrace_engine_kv_host_blocks_used", "KV blocks kept in host memory."),
    "kv_host_total": ("headrace_engine_kv_host_blocks", "KV blocks that host memory can keep."),
    "adapters": ("headrace_engine_adapters", "LoRA adapters that can be asked for."),
    "adapter_bytes": ("headrace_engine_adapter_bytes", "Memory that adapters take."),
}
COUNTERS: Mapping[str, tuple[str, str]] = {
    "steps": ("headrace_engine_steps", "Steps run."),
    "prompt_tokens": ("headrace_engine_prompt_tokens", "Prompt tokens of admitted requests."),
    "cached_tokens": ("headrace_engine_cached_tokens", "Those that another request had computed."),
    "generated_tokens": ("headrace_engine_generated_tokens", "Tokens generated."),
    "drafted": ("headrace_engine_drafted_tokens", "Tokens guessed ahead."),
    "accepted": ("headrace_engine_accepted_tokens", "Guessed tokens that were kept."),
    "cancelled": ("headrace_engine_cancelled", "Requests whose caller left."),
    "preempted": ("headrace_engine_preempted", "Times that a sequence lost its KV to another."),
    "kv_evictions": ("headrace_engine_kv_evictions", "Kept KV blocks that were given away."),
    "kv_offloaded": ("headrace_engine_kv_offloaded_blocks", "KV blocks copied to host memory."),
    "kv_fetched": ("headrace_engine_kv_fetched_blocks", "KV blocks copied from host memory."),
}
RATIOS: Mapping[str, tuple[str, Callable[[Counters], float]]] = {
    "headrace_engine_kv_occupancy_ratio": (
        "Share of the KV blocks that sequences hold.",
        lambda now: now.kv_blocks_used / max(1, now.kv_blocks_total),
    ),
    "headrace_engine_prefix_hit_ratio": (
        "Share of prompt tokens that another request had computed, since the engine began.",
        lambda now: now.cached_tokens / max(1, now.prompt_tokens),
    ),
}


def watch_engines(
    metrics: Metrics, engines: Mapping[str, EngineProcess], configuration: Configuration
) -> None:
    """Add the metrics of `engines`, given by model reference.

    Counts start again at zero with an engine, as those of any process do.
    """
    named = names(configuration)

    def reading(value: Callable[[Counters], float]) -> Callable[[], Mapping[str, float]]:
        return lambda: {named[source]: value(engine.counters) for source, engine in engines.items()}

    for field, (name, about) in GAUGES.items():
        metrics.gauge(name, about, reading(attrgetter(field)))
    for field, (name, about) in COUNTERS.items():
        metrics.counter(name, about, reading(attrgetter(field)))
    for name, (about, ratio) in RATIOS.items():
        metrics.gauge(name, about, reading(ratio))
    metrics.counter(
        "headrace_engine_restarts",
        "Times that an engine's process was started again.",
        lambda: {named[source]: engine.restarts for source, engine in engines.items()},
    )


def watch_residency(metrics: Metrics, residency: Residency, configuration: Configuration) -> None:
    """Add the metrics of what is in memory."""
    named = names(configuration)
    metrics.gauge(
        "headrace_model_memory_bytes",
        "Memory that a local model takes; 0 while it is not loaded.",
        lambda: {
            named[source]: 0 if one.state == "unloaded" else one.bytes
            for source, one in residency.models.items()
        },
    )
    metrics.counter(
        "headrace_model_loads",
        "Times that a local model was loaded.",
        lambda: {named[source]: one.loads for source, one in residency.models.items()},
    )
    metrics.gauge(
        "headrace_model_memory_budget_bytes",
        "Memory that all local models may take together.",
        lambda: residency.budget,
    )


def names(configuration: Configuration) -> dict[str, str]:
    """The name of each local model reference: its own before those of adapters over it."""
    local = [entry for entry in configuration.models.items() if entry[1].provider == LOCAL]
    local.sort(key=lambda entry: entry[1].adapter is not None)
    return {model.source: name for name, model in reversed(local)}
