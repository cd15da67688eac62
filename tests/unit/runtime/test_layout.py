"""The table of what became of each op."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.runtime.backends.choice import because
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.layout import Placed, table
from headrace.runtime.models.program import Pool, Program
from headrace.runtime.options import AUTO
from headrace.runtime.placement import ranges
from tests.fakes.model import write_tiny_gguf


def test_layers_that_are_alike_are_one_line(tiny: Path) -> None:
    options = EngineOptions(backend="reference", kv_tokens=256, quantization="int4")
    with Engine.load(tiny, options) as engine:
        found = engine.layout
    assert (found.backend, found.because) == ("reference", "as asked for")
    many = "attention.query, attention.key, attention.output, mlp.gate, mlp.up, mlp.down"
    why, numpy = "int4 from F32", "numpy float32"
    assert Placed("Linear", many, "0-1", "Q4_1", numpy, why) in found.lines
    assert Placed("Linear", "attention.value", "0-1", "Q8_0", numpy, why) in found.lines
    assert Placed("Logits", "embedding", "", "Q8_0", numpy, why) in found.lines
    norms = "attention.norm, mlp.norm"
    assert Placed("Norm", norms, "0-1", "F32", numpy, "as in its file") in found.lines


def test_the_kernel_is_that_of_the_format(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf", format="Q8_0")
    with Engine.load(path, EngineOptions(kv_tokens=256)) as engine:
        kernels, lines = engine.backend.kernels(), engine.layout.lines
    linear = next(line for line in lines if line.op == "Linear")
    attention = next(line for line in lines if line.op == "Attention")
    assert linear.kernel == kernels.get("linear Q8_0", kernels.get("all"))
    assert attention.kernel == kernels.get("attention", kernels.get("all"))


@pytest.mark.parametrize("level", levels())
def test_a_forced_level_is_what_the_table_names(
    tiny: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CPU_LEVEL", level)
    options = EngineOptions(backend="cpu", kv_tokens=256, quantization="int8")
    with Engine.load(tiny, options) as engine:
        found = {line.op: line.kernel for line in engine.layout.lines}
    others = {name for name in levels() if name not in (level, "amx")}
    vectors = "avx512" if level == "amx" else level
    for op in ("Norm", "Linear", "Logits", "Attention"):
        assert vectors in found[op]
        assert not any(name in found[op] for name in others - {vectors})
        assert ("amx" in found[op]) == (level == "amx" and op != "Norm"), found[op]
    prompts = {op for op, kernel in found.items() if "for prompts" in kernel}
    assert prompts == ({"Linear", "Attention"} if level == "amx" else set())


def test_a_backend_that_is_passed_over_has_its_reason() -> None:
    program = Program((Pool("out", "in", "no such pooling"),), {}, 1, 1, 1, 1)  # type: ignore[arg-type]
    assert because("reference", "reference", program) == "as asked for"
    assert "cpu " in because(AUTO, "reference", program)


def test_the_table_leaves_out_what_says_nothing() -> None:
    lines = [Placed("Pool", "", "", "", "numpy", ""), Placed("Norm", "norm", "", "F32", "n", "")]
    assert table(lines) == [
        "op    weights  format  kernel",
        "Pool                   numpy",
        "Norm  norm     F32     n",
    ]


def test_numbers_become_ranges() -> None:
    assert ranges([5, 0, 1, 2, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""
