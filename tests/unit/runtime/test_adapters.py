"""LoRA adapters of an engine: chosen by request, loaded and dropped while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.request import Request, RequestRefused, SamplingParameters
from headrace.runtime.weights.gguf import WeightsError
from tests.fakes.adapter import factors, write_adapter

GREEDY = SamplingParameters(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = "A prompt of several blocks, to be chunked. " * 2
ADAPTERS = ("none", "first", "second")


def options(**changes: int | str) -> EngineOptions:
    settings = {"backend": "cpu", "kv_tokens": 1024, "block_size": 8, **changes}
    return EngineOptions(**settings, limits=Limits(16, 4, 16))  # type: ignore[arg-type]


@pytest.fixture
def adapters(tmp_path: Path) -> Mapping[str, Path]:
    return {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(ADAPTERS[1:])}


@pytest.fixture(params=["reference", "cpu"])
def engine(
    request: pytest.FixtureRequest, tiny: Path, adapters: Mapping[str, Path]
) -> Iterator[Engine]:
    with Engine.load(tiny, options(backend=request.param)) as loaded:
        for name, path in adapters.items():
            loaded.load_adapter(name, path)
        yield loaded


def asked(
    id: str, adapter: str, prompt: str = PROMPT, sampling: SamplingParameters = GREEDY
) -> Request:
    return Request(id, prompt, sampling, adapter=None if adapter == "none" else adapter)


def drain(engine: Engine) -> dict[str, list[int]]:
    """Step until nothing is left; the tokens of each request."""
    tokens: dict[str, list[int]] = {}
    while not engine.idle:
        for output in engine.step():
            tokens.setdefault(output.id, []).extend(output.tokens)
            assert output.finish is None or output.finish.reason == "length"
    return tokens


def said(engine: Engine, adapter: str, prompt: str = PROMPT) -> list[int]:
    engine.submit(asked("alone", adapter, prompt))
    return drain(engine)["alone"]


def cached(engine: Engine, adapter: str) -> int:
    """Prompt tokens that a request found in the KV cache."""
    before = engine.counters().cached_tokens
    said(engine, adapter)
    return engine.counters().cached_tokens - before


def test_requests_of_one_batch_run_with_their_own_adapters(engine: Engine) -> None:
    alone = {name: said(engine, name) for name in ADAPTERS}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    for round in range(2):
        for name in ADAPTERS:
            engine.submit(asked(f"{name} {round}", name))
    together = drain(engine)
    for round in range(2):
        assert {name: together[f"{name} {round}"] for name in ADAPTERS} == alone


def test_kv_is_shared_under_one_adapter_and_never_between_two(engine: Engine) -> None:
    assert [cached(engine, name) for name in ADAPTERS] == [0, 0, 0]
    assert all(cached(engine, name) >= len(PROMPT) - 8 for name in ADAPTERS)


def test_kv_of_an_adapter_is_not_that_of_another_content_under_its_name(
    engine: Engine, tmp_path: Path, adapters: Mapping[str, Path]
) -> None:
    before = said(engine, "first")
    engine.load_adapter("first", write_adapter(tmp_path / "newer", 9))
    assert cached(engine, "first") == 0
    assert said(engine, "first") != before
    engine.load_adapter("first", adapters["first"])
    assert cached(engine, "first") > 0
    assert said(engine, "first") == before


def test_a_preempted_request_goes_on_with_its_adapter(
    tiny: Path, adapters: Mapping[str, Path]
) -> None:
    long = SamplingParameters(temperature=0, max_tokens=80, ignore_eos=True)
    found = {}
    for tight in (False, True):
        with Engine.load(tiny, options(kv_tokens=144 if tight else 1024)) as small:
            for name, path in adapters.items():
                small.load_adapter(name, path)
            for name in ADAPTERS:
                small.submit(asked(name, name, "Tell me: ", long))
            found[tight] = drain(small)
            assert (small.counters().preempted > 0) == tight
    assert found[True] == found[False]


def test_an_adapter_is_dropped_when_its_last_request_has_ended(engine: Engine) -> None:
    alone = said(engine, "first")
    engine.submit(asked("runs", "first"))
    while not (begun := engine.step()):
        pass
    assert engine.drop_adapter("first")
    assert not engine.drop_adapter("first")
    with pytest.raises(RequestRefused, match="no adapter 'first'; loaded: second") as refused:
        engine.submit(asked("late", "first"))
    assert refused.value.details["field"] == "adapter"
    assert [*begun[0].tokens, *drain(engine)["runs"]] == alone
    assert [one.name for one in engine.adapters.numbers.values()] == ["second"]


def test_adapters_come_and_go_while_others_stream(
    engine: Engine, adapters: Mapping[str, Path]
) -> None:
    alone = {name: said(engine, name) for name in ADAPTERS}
    tokens: dict[str, list[int]] = {}
    for round in range(12):
        engine.submit(asked(f"{round} none", "none"))
        engine.submit(asked(f"{round} second", "second"))
        engine.load_adapter(f"more {round}", adapters["first"])
        engine.submit(asked(f"{round} first", f"more {round}"))
        for output in (*engine.step(), *engine.step()):
            tokens.setdefault(output.id, []).extend(output.tokens)
        engine.drop_adapter(f"more {round}")
        if round % 3 == 0:
            engine.cancel(f"{round} first")
            tokens.pop(f"{round} first", None)
        while len(engine.scheduler.waiting) > 10:
            for output in engine.step():
                tokens.setdefault(output.id, []).extend(output.tokens)
    for id, rest in drain(engine).items():
        tokens.setdefault(id, []).extend(rest)
    assert len(tokens) == 32
    assert all(found == alone[id.split()[1]] for id, found in tokens.items())
    assert len(engine.adapters.numbers) == 2


DOWN = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
UP = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"


def changed(**tensors: np.ndarray | None) -> dict[str, np.ndarray]:
    """Factors, some of them other than they were, or missing."""
    every = {**factors(1), **{{"down": DOWN, "up": UP}[at]: to for at, to in tensors.items()}}
    return {name: values for name, values in every.items() if values is not None}


NANS = np.full((4, 64), np.nan, np.float32)


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ({"use_dora": True}, None, "use_dora"),
        ({"bias": "all"}, None, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, None, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, None, "init_lora_weights 'pissa'"),
        ({"peft_type": "LOHA"}, None, "peft_type 'LOHA'"),
        ({"new_trick": 3}, None, "new_trick"),
        ({"alpha_pattern": {"(a+)+$": 3}}, None, "expected a module's name"),
        ({"r": 0}, None, "r lacks|lacks r"),
        ({"r": 10**9}, None, "count up to 512"),
        ({"r": 5}, None, "rank 4"),
        ({"lora_alpha": "much"}, None, "does not describe"),
        ({"lora_alpha": 1e999}, None, "not numbers"),
        ({}, changed(up=None), "not a pair"),
        ({}, changed(down=NANS), "not numbers"),
        ({}, changed(down=np.zeros((4, 60), np.float32)), "is \\(96, 60\\)"),
        ({}, changed(up=np.zeros((97, 4), np.float32)), "is \\(97, 64\\)"),
        ({}, changed(down=np.zeros((4, 64), np.int32)), "format I32"),
        ({}, {"base_model.model.lm_head.lora_A.weight": NANS}, "not a pair"),
        ({}, {}, "changes nothing"),
        (
            {},
            {
                "base_model.model.model.embed_tokens.lora_A.weight": np.ones((4, 64), np.float32),
                "base_model.model.model.embed_tokens.lora_B.weight": np.ones((259, 4), np.float32),
            },
            "embedding is not supported",
        ),
        ({}, {"base_model.model.model.layers.7.mlp.up_proj.lora_magnitude": NANS}, "not a pair"),
    ],
)
def test_an_adapter_that_would_answer_wrongly_is_refused_by_name(
    engine: Engine, tmp_path: Path, config: dict[str, object], tensors: object, says: str
) -> None:
    path = write_adapter(tmp_path / "bad", 1, config, tensors)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=says):
        engine.load_adapter("bad", path)
    assert engine.drop_adapter("bad") is False


def test_damaged_files_of_an_adapter_are_refused(
    tiny: Path, tmp_path: Path, adapters: Mapping[str, Path]
) -> None:
    weights = adapters["first"] / "adapter_model.safetensors"
    whole = weights.read_bytes()
    random = np.random.default_rng(0)
    with Engine.load(tiny, options()) as engine:
        for _ in range(60):
            damaged = bytearray(whole[: random.integers(0, len(whole))])
            for at in random.integers(0, max(1, min(len(damaged), 4000)), 3):
                damaged[at : at + 1] = random.bytes(1)
            weights.write_bytes(damaged)
            with pytest.raises(WeightsError):
                engine.load_adapter("bad", adapters["first"])
        for path in (tmp_path / "nowhere", tiny):
            with pytest.raises((WeightsError, OSError)):
                engine.load_adapter("bad", path)
        assert engine.generate("x", GREEDY).tokens
