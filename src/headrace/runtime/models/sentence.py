"""What a directory says of sentences: how states become one vector, how texts are prepared.

The layout is that of sentence-transformers: modules.json lists the steps, each with a folder of
its own; a cross-encoder says in config.json what becomes of its score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..text.tokenizer import read_json
from .architecture import Pooling
from .fields import UnsupportedModel

POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
NAMED_POOLINGS: Mapping[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}


@dataclass(frozen=True, slots=True)
class Sentences:
    """How a text becomes a vector.

    `longest` is in tokens, 0 where only the model's context counts. `prefix` goes before every
    text. `normalized` vectors have length 1.
    """

    pooling: Pooling = "mean"
    normalized: bool = True
    longest: int = 0
    lower_case: bool = False
    prefix: str = ""


def read_sentences(directory: Path, otherwise: Pooling = "mean") -> Sentences:
    """Read modules.json and its companions; without them, pooling is `otherwise`, normalised.

    Raises UnsupportedModel on a step that is not known.
    """
    beside = directory / "modules.json"
    if not beside.exists():
        return Sentences(pooling=otherwise)
    steps = {
        step["type"].rpartition(".")[2]: step["path"] for step in json.loads(beside.read_text())
    }
    if unknown := steps.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise UnsupportedModel(f"modules.json has a step {min(unknown)}")
    transformer = read_json(directory / steps.get("Transformer", "") / "sentence_bert_config.json")
    about = read_json(directory / "config_sentence_transformers.json")
    prompts, default = about.get("prompts") or {}, about.get("default_prompt_name")
    return Sentences(
        pooling=pooling_of(read_json(directory / steps.get("Pooling", "") / "config.json")),
        normalized="Normalize" in steps,
        longest=transformer.get("max_seq_length") or 0,
        lower_case=transformer.get("do_lower_case", False),
        prefix=prompts.get(default, "") if default else "",
    )


def pooling_of(config: Mapping[str, Any]) -> Pooling:
    """The one pooling that is on. Raises UnsupportedModel on any other, or on several."""
    named = str(config.get("pooling_mode"))
    if named in NAMED_POOLINGS:
        return NAMED_POOLINGS[named]
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(on) != 1 or on[0] not in POOLINGS:
        raise UnsupportedModel(f"pooling {on}; supported: one of {', '.join(POOLINGS)}")
    return POOLINGS[on[0]]


def score_is_raw(config: Mapping[str, Any]) -> bool:
    """Whether a cross-encoder's score stays as it is; else it goes through a sigmoid."""
    named = (config.get("sentence_transformers") or {}).get("activation_fn")
    named = named or config.get("sbert_ce_default_activation_function") or ""
    return bool(named) and named.rpartition(".")[2] == "Identity"
