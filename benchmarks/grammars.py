"""What holding answers to a grammar costs: masks per step, and whole decode steps.

    python benchmarks/grammars.py [MODEL]

The peer of each figure is a free decode step of the same model with as many rows, in the same run;
`x` is the ratio to it. Masks are measured at every place of answers that the model gives under the
schema, so they are the masks of real steps. The figures are kept in
`benchmarks/results/grammars.json`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from statistics import median

from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.grammar import masks
from headrace.runtime.request import Grammar, Request, SamplingParameters

ROWS = (1, 16)
STEPS = 48
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["person", "place", "thing"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 16}, "maxItems": 4},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"pattern": "^\\d{5}$"}},
            "required": ["city", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "kind", "tags", "score", "home"],
    "additionalProperties": False,
}  # fmt: skip
GRAMMAR = Grammar("json_schema", json.dumps(SCHEMA))
PROMPT = [{"role": "user", "content": "Describe the tower in Paris as JSON."}]


def decode_steps(engine: Engine, rows: int, grammar: Grammar | None) -> float:
    """Median microseconds of a step that decodes `rows` sequences."""
    sampling = SamplingParameters(temperature=1, max_tokens=STEPS, ignore_eos=True)
    for row in range(rows):
        asked = replace(sampling, seed=row)
        engine.submit(Request(f"{row}", PROMPT, asked, grammar=grammar))
    seconds = []
    while not engine.idle:
        decoding = all(one.generated for one in engine.sequences.values())
        full = len(engine.sequences) == rows
        began = time.perf_counter()
        engine.step()
        if decoding and full:
            seconds.append(time.perf_counter() - began)
    return median(seconds) * 1e6


def mask_times(engine: Engine, rows: int) -> tuple[float, float]:
    """Median microseconds to fill the masks of `rows` rows, and to consume their tokens."""
    answers = []
    for seed in range(rows):
        sampling = SamplingParameters(temperature=1, max_tokens=STEPS, seed=seed)
        answers.append(engine.generate(PROMPT, sampling, GRAMMAR).tokens)
    matchers = [engine.grammars.matcher(GRAMMAR) for _ in answers]
    filling, consuming = [], []
    for place in range(min(map(len, answers)) - 1):
        began = time.perf_counter()
        masks(matchers)
        filled = time.perf_counter()
        for matcher, tokens in zip(matchers, answers, strict=True):
            matcher.consume(tokens[place])
        filling.append(filled - began)
        consuming.append(time.perf_counter() - filled)
    return median(filling) * 1e6, median(consuming) * 1e6


def main() -> None:
    """Measure, print, keep."""
    about = setting()
    options = EngineOptions(kv_tokens=8192, speculation=False)
    with Engine.load(pull(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"), options) as engine:
        began = time.perf_counter()
        engine.grammars.matcher(Grammar("choice", '["warm"]'))
        tokenizer = time.perf_counter() - began
        began = time.perf_counter()
        engine.grammars.matcher(GRAMMAR)
        compiled = time.perf_counter() - began
        began = time.perf_counter()
        engine.grammars.matcher(GRAMMAR)
        again = time.perf_counter() - began
        print(f"vocabulary read in {tokenizer * 1e3:.0f} ms, once a model")
        print(f"schema compiled in {compiled * 1e3:.2f} ms, from the cache in {again * 1e6:.0f} us")
        figures = []
        for rows in ROWS:
            filling, consuming = mask_times(engine, rows)
            free, held = (decode_steps(engine, rows, one) for one in (None, GRAMMAR))
            print(
                f"{rows:3} rows: masks {filling:7.0f} us (x {filling / free:.4f}), "
                f"consume {consuming:5.0f} us, "
                f"step {held:7.0f} us against {free:7.0f} (x {held / free:.3f})"
            )
            figures.append(
                {"rows": rows, "mask_us": filling, "consume_us": consuming,
                 "step_us": held, "free_step_us": free, "x": held / free}
            )  # fmt: skip
    costs = {"vocabulary_s": tokenizer, "compile_s": compiled, "cached_s": again}
    keep("grammars", {"setting": about, **costs, "rows": figures})


if __name__ == "__main__":
    main()
