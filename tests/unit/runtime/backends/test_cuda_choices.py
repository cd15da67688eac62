"""What is measured on a device is chosen, kept, and read back; the device's times are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from triton.runtime.errors import OutOfResources

from headrace.runtime.backends import cuda, reference
from headrace.runtime.backends.base import KVLayout
from headrace.runtime.backends.cuda.choices import Choices, driver
from headrace.runtime.backends.cuda.products import FEW, LEVELS, PIECE, multiply
from headrace.runtime.backends.cuda.staging import Staging
from headrace.runtime.backends.cuda.weights import upload
from headrace.runtime.backends.measured import measured_on, read
from tests.fakes.programs import flat_batch, linear_program, random_tensor

WAYS = [("likely", 1), ("other", 2), ("third", 3)]


class Times:
    """A timer that says the next of some times; those of errors cannot run."""

    def __init__(self, times: Iterable[float | Exception], works: bool = True) -> None:
        self.times = list(times)
        self.works = works

    def __call__(self, work: Callable[[], object]) -> float:
        if self.works:
            work()
        found = self.times.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def nothing(way: object) -> None:
    """Work that takes no time."""


def test_the_fastest_way_is_taken_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "chip.json"
    choices = Choices(path, Times([3e-6, 1e-6, 2e-6]))
    assert choices.fastest("product", WAYS, nothing) == 2
    choices.close()
    later = Choices(path, Times([]))
    assert later.fastest("product", WAYS, nothing) == 2


def test_another_device_is_measured_anew(tmp_path: Path) -> None:
    first, second = (measured_on(name, tmp_path) for name in ("NVIDIA H100", "NVIDIA H200"))
    choices = Choices(first, Times([3, 1, 2]))
    choices.fastest("product", WAYS, nothing)
    choices.close()
    assert Choices(second, Times([2, 3, 1])).fastest("product", WAYS, nothing) == 3


def test_what_is_hardly_faster_than_the_likely_way_is_noise() -> None:
    assert Choices(None, Times([1.0, 0.99, 0.985])).fastest("product", WAYS, nothing) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"product": 7}', '{"product": "gone"}', "\xff"])
def test_a_damaged_file_is_measured_anew_and_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "chip.json"
    path.write_text(content, "latin-1")
    choices = Choices(path, Times([3, 1, 2]))
    assert choices.fastest("product", WAYS, nothing) == 2
    choices.close()
    assert read(path) == {"product": "other"}
    assert [one.name for one in tmp_path.iterdir()] == ["chip.json"]


def test_what_two_starts_measure_is_kept_together(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    both = [Choices(path, Times([3, 1, 2])) for _ in range(2)]
    for index, one in enumerate(both):
        one.fastest(f"product {index}", WAYS, nothing)
    for one in both:
        one.close()
    assert read(path) == {"product 0": "other", "product 1": "other"}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    choices = Choices(tmp_path / "file" / "chip.json", Times([3, 1, 2]))
    assert choices.fastest("product", WAYS, nothing) == 2
    choices.close()


def test_a_start_measures_for_a_bounded_time_and_a_later_one_goes_on(tmp_path: Path) -> None:
    path, now = tmp_path / "chip.json", [0.0]

    def slow(work: Callable[[], object]) -> float:
        now[0] += 0.4
        return 2.0 if now[0] == 0.4 else 1.0

    choices = Choices(path, slow, seconds=1.3, clock=lambda: now[0])
    assert choices.fastest("first", WAYS, nothing) == 2
    assert choices.fastest("second", WAYS, nothing) == 1  # the time is over within it
    assert choices.fastest("third", WAYS, nothing) == 1
    choices.close()
    assert now[0] == pytest.approx(1.6)
    assert read(path) == {"first": "other"}
    assert Choices(path, Times([3, 1, 2])).fastest("second", WAYS, nothing) == 2


def test_a_choice_does_not_change_while_the_process_lives() -> None:
    choices = Choices(None, Times([3, 1, 2]), seconds=0)
    assert choices.fastest("product", WAYS, nothing) == 1
    choices.left = 1
    assert choices.fastest("product", WAYS, nothing) == 1


@pytest.mark.parametrize("error", [OutOfResources(300, 200, "shared"), torch.OutOfMemoryError()])
def test_a_way_that_the_device_cannot_go_is_passed_over(error: Exception) -> None:
    choices = Choices(None, Times([error, 2, 3]))
    assert choices.fastest("product", WAYS, nothing) == 2


def test_products_go_by_what_was_measured_at_their_number_of_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    made, weights = linear_program({"first": random_tensor(random, "BF16", 40, 1024)})
    weights["table"] = random_tensor(random, "F32", 30, 1024)
    on = cuda.found_device()
    expected = {}
    for rows in (3, FEW, FEW + 1):
        batch = flat_batch(list(random.integers(0, 30, rows)))
        expected[rows] = batch, reference.load(made, weights, KVLayout(1), 1).logits(batch)
    told = set()
    for fastest in range(7):
        path = tmp_path / f"{fastest}.json"
        times = (float(abs(index % 8 - fastest)) for index in range(200))
        spent = Times(times, works=fastest == 0)
        choices = Choices(path, spent, seconds=1e9)
        backend = cuda.CUDABackend(made, weights, KVLayout(1), on, choices)
        for batch, truth in expected.values():
            scale = float(np.abs(truth).max())
            np.testing.assert_allclose(backend.logits(batch), truth, atol=3e-6 * scale)
        told.add(backend.kernels()["linear BF16"].partition(", Triton ")[2])
        backend.close()
        kept = [name for name in read(path) if name.startswith("40x1024")]
        assert len(kept) == len(LEVELS) - 1  # many rows are the library's own
    assert "tiles to 16 rows, cuBLAS above" in told
    assert "tiles to 64 rows, cuBLAS above" in told


def test_invariant_rows_have_the_same_bits_in_any_company() -> None:
    random = np.random.default_rng(2)
    names = {"first": "BF16", "second": "Q4_1"}
    made, weights = linear_program(
        {name: random_tensor(random, format, 16, 1024) for name, format in names.items()}
    )
    weights["table"] = random_tensor(random, "F32", 30, 1024)
    on = replace(cuda.found_device(), invariant=True)
    backend = cuda.CUDABackend(made, weights, KVLayout(1), on)
    alone = backend.logits(flat_batch([7]))[0]
    for rows in (2, FEW + 1, PIECE + 3):
        tokens = list(random.integers(0, 30, rows))
        tokens[-1] = 7
        assert np.array_equal(backend.logits(flat_batch(tokens))[-1], alone)


def test_the_driver_is_read_where_it_says_its_version(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert driver(path) == "driver unknown"
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue\nGCC version:")
    assert driver(path) == "driver 580.159.04"


@pytest.mark.parametrize("format", ["BF16", "Q6_K", "E4M3"])
def test_the_library_multiplies_packed_weights_once_they_are_widened(format: str) -> None:
    tensor = random_tensor(np.random.default_rng(3), format, 40, 512)
    on = cuda.found_device()
    weight = upload([tensor], on.dtype, Staging(on.device, piece=1000))
    source, bias = torch.randn(5, 512), torch.randn(40)
    out = torch.full((5, 40), torch.nan)
    multiply(None, source, weight, bias, out)
    expected = source @ torch.from_numpy(tensor.float32()).T + bias
    torch.testing.assert_close(out, expected)
