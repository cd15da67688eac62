"""How fast weights come in: loading a model against reading its file.

    python benchmarks/loading.py [--layers 16] [--rounds 3] [--output loading]

The model has the shapes of a Llama of 1.2 billion parameters and random weights in bfloat16, in a
temporary directory of safetensors. The floor is reading the same files in pieces of 8 MiB into one
buffer, all else alike: once with the files' pages dropped from the page cache, so that the disk is
read, and once with them there. `x` is the load's time to the floor's, medians over the rounds. A
load ends with a first token, which has read all weights; what is made of them (packed for the
processor's units, rounded where `--quantization` asks it) is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
from quantization import write_tokenizer
from safetensors.numpy import save_file
from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.options import Quantization
from headrace.runtime.request import SamplingParameters

WIDTH, GATE, HEADS, KV_HEADS = 2048, 8192, 32, 8
FORMS: tuple[Quantization | None, ...] = (None, "int8", "int4")
PIECE = 8 << 20


def write_model(folder: Path, layers: int) -> None:
    """A directory as model hubs keep it."""
    source = load_checkpoint(pull("smollm2-135m"))
    write_tokenizer(source, folder)
    vocabulary = source.architecture.vocabulary
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return (random.standard_normal(shape, np.float32) / 45).astype(ml_dtypes.bfloat16)

    def norm() -> np.ndarray[Any, Any]:
        return np.ones(WIDTH, ml_dtypes.bfloat16)

    tensors = {"model.embed_tokens.weight": weight(vocabulary, WIDTH), "model.norm.weight": norm()}
    save_file(tensors, folder / "model-0.safetensors")
    held = dict.fromkeys(tensors, "model-0.safetensors")
    for layer in range(layers):
        side = WIDTH // HEADS * KV_HEADS
        stem, file = f"model.layers.{layer}", f"model-{layer + 1}.safetensors"
        tensors = {
            f"{stem}.self_attn.q_proj.weight": weight(WIDTH, WIDTH),
            f"{stem}.self_attn.k_proj.weight": weight(side, WIDTH),
            f"{stem}.self_attn.v_proj.weight": weight(side, WIDTH),
            f"{stem}.self_attn.o_proj.weight": weight(WIDTH, WIDTH),
            f"{stem}.mlp.gate_proj.weight": weight(GATE, WIDTH),
            f"{stem}.mlp.up_proj.weight": weight(GATE, WIDTH),
            f"{stem}.mlp.down_proj.weight": weight(WIDTH, GATE),
            f"{stem}.input_layernorm.weight": norm(),
            f"{stem}.post_attention_layernorm.weight": norm(),
        }
        save_file(tensors, folder / file)
        held |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": held}))
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": GATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))


def drop(files: list[Path]) -> None:
    """Let the page cache forget the files."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path]) -> float:
    """Seconds that it takes to read the files."""
    buffer = bytearray(PIECE)
    began = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def load(folder: Path, form: Quantization | None) -> float:
    """Seconds until the model's first token."""
    options = EngineOptions(kv_tokens=1024, quantization=form, speculation=False)
    began = time.perf_counter()
    with Engine.load(folder, options) as engine:
        engine.generate([1000], SamplingParameters(max_tokens=1, ignore_eos=True))
        return time.perf_counter() - began


def measure(
    folder: Path, files: list[Path], form: Quantization | None, rounds: int
) -> list[dict[str, Any]]:
    """Rows of one form of the weights, printed as they are made."""
    size = sum(path.stat().st_size for path in files)
    rows = []
    for pages in ("disk", "page cache"):
        floors, loads = [], []
        for _ in range(rounds):
            if pages == "disk":
                drop(files)
            floors.append(read(files))
            if pages == "disk":
                drop(files)
            loads.append(load(folder, form))
        x = median(a / b for a, b in zip(loads, floors, strict=True))
        print(
            f"{form or 'bfloat16':<9} from {pages:<10} loaded in {median(loads):5.2f} s, "
            f"{size / median(loads) / 1e9:5.2f} GB/s; read in {median(floors):5.2f} s, "
            f"{size / median(floors) / 1e9:5.2f} GB/s; x {x:.2f}",
            flush=True,
        )
        row = {"form": form or "bfloat16", "from": pages, "bytes": size, "x": x}
        rows.append(row | {"load_s": median(loads), "read_s": median(floors)})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    arguments = parser.parse_args()
    about = setting()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, arguments.layers)
        files = sorted(folder.glob("*.safetensors"))
        os.sync()
        rows = [row for form in FORMS for row in measure(folder, files, form, arguments.rounds)]
    if arguments.output:
        keep(arguments.output, {"setting": about, "layers": arguments.layers, "figures": rows})


if __name__ == "__main__":
    main()
