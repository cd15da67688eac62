"""What quantising at load costs and saves: seconds, bytes, tokens a second, perplexity.

    python benchmarks/quantization.py [--tokens 4096] [--output quantization]

The model is SmolLM2-135M, dequantised to a bfloat16 directory of safetensors. Its file is Q4_1,
whose blocks a second rounding to Q4_1 would find again and look free. So its hidden dimensions are
put in another order first (residual stream, MLP, each head's values): the same function, the same
weights, but 32 that share a block come from many. `--keep-order` shows what that does. The text is
that of this project's documentation, in windows of 1,024 tokens; perplexity is over all but the
first token of each. bfloat16 weights are the baseline.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.checkpoint import Checkpoint, load_checkpoint
from headrace.runtime.options import Quantization
from headrace.runtime.request import SamplingParameters

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("routing.md", "evaluation.md", "caching.md", "configuration.md")
WINDOW = 1024  # tokens
FORMS: tuple[Quantization | None, ...] = (None, "int8", "int4", "fp8")
NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.norm": "input_layernorm",
    "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
READS_RESIDUAL = ("embedding", "query", "key", "value", "norm", "gate", "up")


def main() -> None:
    """Measure and print."""
    arguments = parse()
    path = pull("smollm2-135m")
    source = load_checkpoint(path)
    text = "\n".join((DOCS / page).read_text() for page in PAGES)
    tokens = source.vocabulary.encode(text, add_bos=False)[: arguments.tokens]
    about = setting()
    print(f"{about['processor']}, {about['processors']} processors, load {about['load']:.1f}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_directory(source, Path(folder), shuffled=not arguments.keep_order)
        for form in FORMS:
            measured = found[form or "as it is"] = measure(Path(folder), form, source, tokens)
            print(
                f"{form or 'bfloat16':<9} loaded in {measured['seconds']:.2f} s, "
                f"{measured['bytes'] / 1e6:.0f} MB of weights, "
                f"decodes {measured['decode']:.0f} tokens/s, "
                f"perplexity {measured['perplexity']:.3f}"
            )
    if arguments.output:
        digest = hashlib.sha256(repr(tokens).encode()).hexdigest()
        keep(arguments.output, {"setting": about, "tokens_sha256": digest, "forms": found})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4 * WINDOW)
    parser.add_argument("--keep-order", action="store_true", help="the file's own blocks")
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    return parser.parse_args()


def measure(
    path: Path, form: Quantization | None, source: Checkpoint, tokens: list[int]
) -> dict[str, Any]:
    """One form of the model. The loaded vocabulary is the source's: the directory has none."""
    options = EngineOptions(kv_tokens=2 * WINDOW, quantization=form, speculation=False)
    began = time.perf_counter()
    engine = Engine.load(path, options)
    seconds = time.perf_counter() - began
    with engine:
        size = sum(tensor.data.nbytes for tensor in engine.checkpoint.weights.values())
        surprise = [
            value
            for first in range(0, len(tokens), WINDOW)
            for value in logprobs(engine, tokens[first : first + WINDOW])
        ]
        sampling = SamplingParameters(max_tokens=128, temperature=0.0, ignore_eos=True)
        finish = engine.generate(tokens[:64], sampling).finish
        kinds = engine.checkpoint.kinds
    return {
        "seconds": seconds,
        "bytes": size,
        "decode": (finish.completion_tokens - 1) / finish.timings.decode,
        "perplexity": math.exp(-sum(surprise) / len(surprise)),
        "kinds": kinds,
    }


def logprobs(engine: Engine, tokens: list[int]) -> list[float]:
    """The log-probabilities of all tokens but the first."""
    sampling = SamplingParameters(max_tokens=1, prompt_logprobs=0)
    for output in engine.stream(tokens, sampling):
        if output.prompt_logprobs:
            return [one.logprob for one in output.prompt_logprobs if one.logprob is not None]
    return []


def write_directory(source: Checkpoint, folder: Path, *, shuffled: bool) -> None:
    """The model in bfloat16, its hidden dimensions in another order where `shuffled`."""
    model = source.architecture
    random = np.random.default_rng(0)
    sizes = {"residual": model.width, "gate": model.gate_width, "head": model.head_size}
    order = random.permutation if shuffled else np.arange
    orders: dict[str, NDArray[Any]] = {name: order(size) for name, size in sizes.items()}
    tensors = {}
    for name, tensor in source.weights.items():
        values = reordered(name, tensor.float32(), orders)
        kind = name.split(".", 2)[2] if name.startswith("layers.") else name
        if kind in ("attention.query", "attention.key"):
            values = split_halves(values, model.head_size)
        stem = f"model.layers.{name.split('.')[1]}.{NAMES[kind]}" if kind != name else NAMES[name]
        if kind.endswith("norm"):
            values = values[0]
        tensors[f"{stem}.weight"] = np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    rope = model.layers[0].rope
    config = {
        "model_type": "llama",
        "hidden_size": model.width,
        "intermediate_size": model.gate_width,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": float((1 / rope.frequencies[1]) ** (model.head_size / 2)),
        "tie_word_embeddings": model.tied_embeddings,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(source, folder)


def reordered(
    name: str, values: NDArray[np.float32], orders: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """A weight of the model whose hidden dimensions are in these orders."""
    kind = name.rpartition(".")[2]
    if kind in READS_RESIDUAL:
        values = values[:, orders["residual"]]
    if name.endswith(("attention.output", "mlp.down")):
        values = values[orders["residual"]]
    if name.endswith(("mlp.gate", "mlp.up")):
        values = values[orders["gate"]]
    if name.endswith("mlp.down"):
        values = values[:, orders["gate"]]
    size = len(orders["head"])
    if name.endswith("attention.value"):
        heads = values.reshape(-1, size, values.shape[1])[:, orders["head"]]
        values = heads.reshape(values.shape)
    if name.endswith("attention.output"):
        heads = values.reshape(values.shape[0], -1, size)[..., orders["head"]]
        values = heads.reshape(values.shape)
    return values


def split_halves(values: NDArray[np.float32], head: int) -> NDArray[np.float32]:
    """GGUF turns neighbours (0, 1), Hugging Face's Llama turns halves (0, head / 2)."""
    pairs = values.reshape(-1, head // 2, 2, values.shape[1])
    return pairs.transpose(0, 2, 1, 3).reshape(values.shape)


def write_tokenizer(source: Checkpoint, folder: Path) -> None:
    """The model's own tokenizer, as its GGUF file describes it."""
    (folder / "tokenizer.json").write_text(source.vocabulary.encoder.to_str())


if __name__ == "__main__":
    main()
