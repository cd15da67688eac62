"""Descriptions from what published models say, and refusals of what nobody reads."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headrace.runtime.models.families import from_config
from headrace.runtime.models.fields import UnsupportedModel
from headrace.runtime.weights.gguf import WeightsError
from tests.unit.runtime.models import published


@pytest.mark.parametrize("name", published.ALL)
def test_what_published_models_say_is_understood(name: str) -> None:
    config = published.ALL[name]
    model = from_config(config)
    assert len(model.layers) == config["num_hidden_layers"]
    assert model.width == config["hidden_size"]


@pytest.mark.parametrize("name", published.ALL)
def test_a_field_that_is_not_known_is_refused_by_name(name: str) -> None:
    changed = {**published.ALL[name], "attention_twist": 0.5}
    with pytest.raises(UnsupportedModel, match=r"attention_twist 0\.5"):
        from_config(changed)
    assert from_config({**changed, "attention_twist": None}) == from_config(published.ALL[name])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "RoPE scaling 'spiral'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "bend": 1}}, "bend"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        from_config({**published.LLAMA_3_2_1B, **changes})


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "vocab_size", "head_dim"])
@pytest.mark.parametrize("value", [-1, 2**40, "many", 1.5])
def test_an_absurd_size_is_refused_before_anything_is_made_of_it(field: str, value: object) -> None:
    with pytest.raises((WeightsError, TypeError), match=f"{field}|int"):
        from_config({**published.LLAMA_3_2_1B, field: value})


def test_a_missing_field_is_named() -> None:
    config = {**published.LLAMA_3_2_1B}
    del config["rms_norm_eps"]
    with pytest.raises(WeightsError, match="lacks rms_norm_eps"):
        from_config(config)


def test_gemma_3_s_local_layers_turn_faster_and_see_less() -> None:
    model = from_config(published.GEMMA_3_1B)
    full = [index for index, layer in enumerate(model.layers) if not layer.window]
    assert full == [5, 11, 17, 23]
    assert {layer.window for layer in model.layers} == {0, 512}
    local, wide = model.layers[0].rope.frequencies, model.layers[5].rope.frequencies
    assert local[1] == pytest.approx(10_000 ** (-1 / 128))
    assert wide[1] == pytest.approx(1_000_000 ** (-1 / 128))


def test_scaling_is_for_gemma_3_s_wide_layers_only() -> None:
    plain = from_config(published.GEMMA_3_1B)
    scaling = {"rope_type": "linear", "factor": 8.0}
    scaled = from_config({**published.GEMMA_3_1B, "rope_scaling": scaling})
    assert scaled.layers[0] == plain.layers[0]
    wide, before = scaled.layers[5].rope.frequencies, plain.layers[5].rope.frequencies
    np.testing.assert_allclose(np.array(wide) * 8, before)


def test_longrope_is_chosen_by_the_longest_sequence_that_will_be_served() -> None:
    short = from_config(published.PHI_4_MINI, served=4096).layers[0].rope
    long = from_config(published.PHI_4_MINI, served=4097).layers[0].rope
    whole = from_config(published.PHI_4_MINI).layers[0].rope
    assert long == whole
    assert short.frequencies[0] == long.frequencies[0] == 1.0
    assert short.frequencies[1] == pytest.approx(2 * long.frequencies[1])
    assert short.scale == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


def test_smollm3_does_not_turn_every_fourth_layer() -> None:
    model = from_config(published.SMOLLM3_3B)
    still = [index for index, layer in enumerate(model.layers) if not layer.rope.frequencies]
    assert still == list(range(3, 36, 4))


def test_roberta_s_positions_begin_after_its_padding() -> None:
    model = from_config(published.XLM_R_BASE)
    assert model.context == 512
    assert model.inputs is not None
    assert model.inputs.position_offset == 2
