"""Embeddings a second: this engine beside transformers on the same model, texts and threads.

    python benchmarks/encoders.py [--model minilm-l6] [--rounds 5] [--output encoders]

Both pool and normalise. This engine computes as its processor does best: where that has tiles,
bfloat16 products summed in float32. transformers gets its best setting: texts sorted by length, in
batches of 32 padded to their longest, attention by torch's own kernels, in float32 and in bfloat16,
of which the faster counts. Tokenizing is part of all. In every round each answers the same texts;
`x` is the median ratio of the seconds. Before anything is timed, vectors are compared in float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from setting import keep, setting

from headrace.registry.pull import pull
from headrace.runtime.embedding import Encoder
from headrace.runtime.processors import usable_processors

SENTENCE = "the river runs through the valley, and a stream number {} flows down to the sea. "
WORKS = {"one short": (1, 1), "one long": (1, 12), "64 short": (64, 1), "64 mixed": (64, 0)}
BATCH = 32  # texts


class Peer:
    """A model of transformers, with mean pooling."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        torch.set_num_threads(usable_processors())
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.model = transformers.AutoModel.from_pretrained(path, dtype=dtype).eval()

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors [texts, width] of length 1."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            chosen = [texts[place] for place in places]
            read = self.tokenizer(chosen, padding=True, truncation=True, return_tensors="pt")
            states = self.model(**read).last_hidden_state
            mask = read["attention_mask"].unsqueeze(-1)
            pooled = (states * mask).sum(1) / mask.sum(1)
            found[places] = torch.nn.functional.normalize(pooled.float()).numpy()
        return found


def texts_of(count: int, sentences: int) -> list[str]:
    """Texts of as many sentences; 0: from one to eight."""
    return [
        "".join(SENTENCE.format(f"{row} {at}") for at in range(sentences or 1 + row % 8))
        for row in range(count)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="minilm-l6", help="a reference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    arguments = parser.parse_args()
    about, path = setting(), pull(arguments.model)
    peers = [Peer(path, dtype) for dtype in (torch.float32, torch.bfloat16)]
    with Encoder.load(path) as encoder:
        rows = [
            measure(name, texts_of(*work), encoder, peers, arguments.rounds)
            for name, work in WORKS.items()
        ]
    if arguments.output:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        about["peers"] = versions
        keep(arguments.output, {"setting": about, "model": arguments.model, "figures": rows})


def measure(
    name: str, texts: list[str], encoder: Encoder, peers: list[Peer], rounds: int
) -> dict[str, Any]:
    """One row of figures, printed as it is made."""
    ours = encoder.embed(texts, truncate=True)
    apart = float(np.abs(ours.vectors - peers[0].embed(texts)).max())
    if apart > 1e-2:
        raise RuntimeError(f"the vectors differ by {apart}")
    calls: list[Callable[[], object]] = [partial(encoder.embed, texts, truncate=True)]
    calls += [partial(peer.embed, texts) for peer in peers]
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for which in range(len(calls)) if turn % 2 else reversed(range(len(calls))):
            began = time.perf_counter()
            calls[which]()
            seconds[which].append(time.perf_counter() - began)
    tokens = sum(ours.tokens)
    here, *there = map(median, seconds)
    best = seconds[1 + there.index(min(there))]
    x = median(theirs / mine for mine, theirs in zip(seconds[0], best, strict=True))
    print(
        f"{name:<10} {tokens:5} tokens: {here * 1e3:7.1f} ms, {tokens / here:6.0f} tokens/s; "
        f"transformers {there[0] * 1e3:7.1f} ms in float32, {there[1] * 1e3:7.1f} in bfloat16; "
        f"x {x:.2f} (vectors within {apart:.0e})",
        flush=True,
    )
    return {"work": name, "tokens": tokens, "seconds": here, "transformers_s": there, "x": x}


if __name__ == "__main__":
    main()
