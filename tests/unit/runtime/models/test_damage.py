"""Descriptions with anything anywhere: the file is named as at fault, and nothing else happens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from safetensors.numpy import save_file

from headrace.runtime.embedding import Encoder
from headrace.runtime.models.checkpoint import blaming, describe_directory, load_checkpoint
from headrace.runtime.weights.gguf import WeightsError
from tests.unit.runtime.models import published

ANYTHING = strategies.one_of(
    strategies.none(),
    strategies.booleans(),
    strategies.integers(-5, 2**70),
    strategies.floats(),
    strategies.text(max_size=5),
    strategies.lists(strategies.integers(-2, 50), max_size=4),
    strategies.dictionaries(strategies.sampled_from(["rope_type", "factor"]), strategies.text()),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged")
    save_file({"model.norm.weight": np.ones(4, np.float32)}, path / "model.safetensors")
    return path


def describe(path: Path) -> None:
    with warnings.catch_warnings(), blaming(path):
        warnings.simplefilter("error")
        describe_directory(path)


@pytest.mark.parametrize("name", published.ALL)
@hypothesis.settings(max_examples=60)
@hypothesis.given(data=strategies.data())
def test_a_value_of_any_kind_ends_in_a_refusal(
    name: str, data: strategies.DataObject, directory: Path
) -> None:
    config = dict(published.ALL[name])
    fields = strategies.sampled_from(sorted(config.keys() - {"model_type"}))
    for field in data.draw(strategies.lists(fields, min_size=1, max_size=2)):
        config[field] = data.draw(ANYTHING)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError):
        describe(directory)


def test_a_directory_without_its_parts_names_what_is_missing(tmp_path: Path) -> None:
    def refusal(load: Any) -> str:
        with pytest.raises(WeightsError) as refused:
            load(tmp_path)
        return str(refused.value)

    assert "model_type 'None'" in refusal(load_checkpoint)
    (tmp_path / "config.json").write_text(json.dumps(published.BERT_BASE))
    assert "no .safetensors" in refusal(Encoder.load)
    (tmp_path / "modules.json").write_text('[{"path": "1_Pooling"}]')
    save_file({"embeddings.LayerNorm.gamma": np.ones(4, np.float32)}, tmp_path / "m.safetensors")
    assert "the weight embedding is missing" in refusal(Encoder.load)
