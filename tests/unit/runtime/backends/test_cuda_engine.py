"""The engine on the CUDA backend, whole: the same text as on the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.request import Request, SamplingParameters
from tests.fakes.model import write_tiny_gguf


@pytest.mark.parametrize(("format", "speculation"), [("F32", False), ("Q4_1", True)])
def test_requests_together_get_the_reference_s_tokens(
    tmp_path: Path, format: str, speculation: bool
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", format=format)
    asked = [
        Request("greedy", "once upon", SamplingParameters(max_tokens=5, temperature=0)),
        Request("sampled", "a time there", SamplingParameters(max_tokens=4, top_p=0.9, seed=3)),
        Request("both", "was", SamplingParameters(max_tokens=3, top_k=9, seed=4, logprobs=2)),
    ]

    def tokens(backend: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {request.id: [] for request in asked}
        options = EngineOptions(backend=backend, kv_tokens=256, speculation=speculation)
        with Engine.load(path, options) as engine:
            for request in asked:
                engine.submit(request)
            while not engine.idle:
                for output in engine.step():
                    found[output.id] += output.tokens
        return found

    assert tokens("cuda") == tokens("reference")
