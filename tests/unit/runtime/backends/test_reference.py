"""What the reference backend computes by itself, because numpy has it not."""

from __future__ import annotations

import math

import numpy as np

from headrace.runtime.backends.reference import erf, gelu


def test_erf_is_right_to_the_last_digits_of_a_float32() -> None:
    values = np.concatenate([np.linspace(-6, 6, 20_001), np.linspace(-1e-3, 1e-3, 2_001)])
    values = values.astype(np.float32)
    expected = np.array([math.erf(value) for value in values.tolist()])
    assert np.abs(erf(values) - expected).max() < 1e-7


def test_gelu_keeps_its_ends_and_what_is_no_number() -> None:
    ends = gelu(np.array([-1e30, -0.0, 0.0, 1e30, np.nan], np.float32))
    np.testing.assert_array_equal(ends, np.array([0, 0, 0, 1e30, np.nan], np.float32))
