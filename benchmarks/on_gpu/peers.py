"""Others on the same shapes in the same run: transformers with a static cache, and vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from headrace.runtime.models.architecture import Architecture

from .run import Line, Run

VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
folder, batches, asked, seconds = sys.argv[1], *map(json.loads, sys.argv[2:])
llm = LLM(folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
          gpu_memory_utilization=0.9, max_model_len=2 * asked + 64, max_num_seqs=max(batches),
          enable_prefix_caching=False, disable_log_stats=True)
sampling = SamplingParams(temperature=0, max_tokens=asked, ignore_eos=True, detokenize=False)
began = time.monotonic()
for rows in [batches[0], *batches]:
    prompts = [
        {"prompt_token_ids": [(7 * row + i) % 1000 for i in range(asked)]} for row in range(rows)
    ]
    before = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    speed = rows * asked / (time.perf_counter() - before)
    print(json.dumps({"rows": rows, "tok/s": speed}), flush=True)
    if time.monotonic() - began > seconds:
        break
"""


def config_of(model: Architecture) -> transformers.LlamaConfig:
    """The same shapes for transformers."""
    return transformers.LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        intermediate_size=model.gate_width,
        num_hidden_layers=len(model.layers),
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_size,
        max_position_embeddings=model.context,
        tie_word_embeddings=model.tied_embeddings,
    )


def peers(run: Run) -> Iterator[Line]:
    """Decode steps of transformers, captured by hand; then vLLM, where its wheels were carried."""
    yield {"peer": "transformers", "version": transformers.__version__}
    for model, format in run.sizes.models[:2]:
        if format == "BF16" and run.left > 10:
            yield from transformers_decodes(run, model)
    if run.wheels is not None:
        yield from vllm_serves(run, run.sizes.models[1][0], run.wheels)


def transformers_decodes(run: Run, model: Architecture) -> Iterator[Line]:
    """Milliseconds of a step by batch, at the second context."""
    config = config_of(model)
    with torch.device(run.device):
        theirs: Any = transformers.LlamaForCausalLM(config)
    theirs = theirs.eval().to(torch.bfloat16 if run.device.type == "cuda" else torch.float32)
    context = run.sizes.contexts[min(1, len(run.sizes.contexts) - 1)]
    for rows in [one for one in run.sizes.batches if one in (1, 2, 8, 64)]:
        if run.left < 5:
            break
        with torch.inference_mode():
            work = transformers_step(run, theirs, rows, context)
            spent = run.seconds(work)
        yield {
            "peer": f"transformers {model.name}",
            "streams": rows,
            "context": context,
            "ms": spent * 1e3,
            "tok/s": rows / spent,
        }


def transformers_step(run: Run, model: Any, rows: int, context: int) -> Callable[[], object]:
    """A decode step with everything in its place; as one graph on a GPU."""
    cache = transformers.StaticCache(
        config=model.config, max_cache_len=context + 64
    )  # every step fills a place
    tokens = torch.zeros((rows, context - 1), dtype=torch.long, device=run.device)
    for begin in range(0, context - 1, 512):
        some = tokens[:, begin : begin + 512]
        model(some, past_key_values=cache, use_cache=True, logits_to_keep=1)
    one = tokens[:, :1].clone()
    place = torch.full((rows, 1), context - 1, device=run.device)

    def work() -> object:
        return model(one, past_key_values=cache, use_cache=True, position_ids=place)

    if run.device.type != "cuda":
        return work
    try:
        for _ in range(2):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    except RuntimeError:  # it reads something back: launch by launch then
        torch.cuda.synchronize()
        return work
    return graph.replay


def vllm_serves(run: Run, model: Architecture, wheels: Path) -> Iterator[Line]:
    """Output tokens a second of vLLM, offline, at its own settings; `wheels` is a folder that
    its packages were installed to."""
    with tempfile.TemporaryDirectory() as folder:
        config = {**config_of(model).to_dict(), "architectures": ["LlamaForCausalLM"]}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        batches = json.dumps([1, 8, 64, run.sizes.requests])
        command = [sys.executable, "-c", VLLM, folder, batches, str(run.sizes.asked)]
        done = subprocess.run(
            [*command, str(run.left / 2)],
            capture_output=True,
            text=True,
            timeout=max(10.0, run.left),
            env={**os.environ, "PYTHONPATH": str(wheels), "TRITON_INTERPRET": "0"},
            check=False,
        )
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield {"peer": f"vLLM {model.name}", **json.loads(line)}
    if done.returncode:
        yield {"peer": "vLLM", "failed": done.stderr[-1500:]}
