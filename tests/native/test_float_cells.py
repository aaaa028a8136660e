"""Floats as cells and bits: exact for every bit pattern, the same everywhere, damage is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.codec.native import float_cells, library
from mricodec.codec.native.float_cells import FloatCells, SplitFloats

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]


@pytest.fixture(params=library.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that this CPU runs."""
    if request.param not in library.backends():
        pytest.skip(f"no {request.param} here")
    library.use_backend(request.param)
    yield request.param
    library.use_backend(None)


def check_exact(values: NDArray[Any], cells: FloatCells | None = None) -> SplitFloats:
    cells = cells or float_cells.choose(values)
    assert cells is not None
    parts = float_cells.split(values, cells)
    assert np.abs(parts.samples.astype(np.int64)).max(initial=0) < 1 << 24
    assert not parts.samples[parts.classes > 0].any()
    joined = float_cells.join(parts, cells, values.dtype)
    assert joined.dtype == values.dtype and joined.tobytes() == values.tobytes()
    return parts


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-3, 1.0, 300.0, 1e30])
def test_noise(dtype: np.dtype[Any], scale: float, backend: str) -> None:
    values = (np.random.default_rng(0).normal(0, 1, (3, 20, 30)) * scale).astype(dtype)
    check_exact(values)
    values[:, :10] = 0
    parts = check_exact(values)
    assert (parts.classes[:, :10] == 1).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_exponent(dtype: np.dtype[Any], backend: str) -> None:
    rng = np.random.default_rng(1)
    values = np.frombuffer(rng.bytes(8000), dtype)
    values = np.where(np.isfinite(values), values, 1)
    check_exact(values)
    check_exact(np.array([0.0, np.finfo(dtype).tiny, np.finfo(dtype).max, 5e-324, 1.0], dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_no_numbers_are_special(dtype: np.dtype[Any]) -> None:
    values = np.random.default_rng(2).normal(0, 1, (2, 9, 9)).astype(dtype)
    values[0, 0] = np.nan
    values[0, 1, :2] = np.inf, -np.inf
    values[1, 1, 1] = -0.0
    bits = values.view(f"u{dtype.itemsize}")
    bits[1, 2, 2] = bits[0, 0, 0] + 5  # NaN with a payload.
    parts = check_exact(values)
    assert parts.classes[1, 1, 1] and parts.classes[1, 2, 2] and not parts.classes[1, 3].any()


def test_more_patterns_of_nan_than_classes() -> None:
    bits = np.arange(300, dtype=np.uint32) + 0x7FC00000
    assert float_cells.choose(bits.view(np.float32)) is None


@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1, 1), (2, 0, 3)])
def test_few_values(shape: tuple[int, ...]) -> None:
    for value in (0.0, -0.0, 1.5, np.nan):
        check_exact(np.full(shape, value, np.float32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("unit", [1.0, 1 / 32, 64.0])
def test_multiples_of_a_power_of_two_have_no_bits(dtype: np.dtype[Any], unit: float) -> None:
    rng = np.random.default_rng(3)
    values = (rng.integers(-300, 300, (4, 20, 20)) * unit).astype(dtype)
    cells = float_cells.choose(values)
    assert cells is not None and cells.exact
    assert check_exact(values, cells).bits == b""


def test_bits_that_are_always_0_are_left_out() -> None:
    noise = np.random.default_rng(4).normal(100, 20, (4, 40, 40)).astype(np.float32)
    half = noise.astype(np.float16).astype(np.float32)
    assert len(check_exact(half).bits) < len(check_exact(noise).bits) / 3


def test_cells_are_finer_than_noise() -> None:
    k, j, i = np.indices((4, 64, 64))
    noise = np.random.default_rng(5).normal(0, 1e-4, k.shape)
    fine = check_exact((np.sin((i + j) / 400) + noise).astype(np.float32))
    steps = np.abs(np.diff(fine.samples.astype(np.int64), axis=-1)).mean()
    assert 4 < steps < 200


@pytest.mark.parametrize("dtype", FLOATS)
def test_backends_split_alike(dtype: np.dtype[Any]) -> None:
    values = np.random.default_rng(6).normal(0, 1, 1000).astype(dtype)
    results = set()
    for name in library.backends():
        library.use_backend(name)
        parts = check_exact(values)
        results.add((parts.bits, parts.samples.tobytes(), parts.classes.tobytes()))
    library.use_backend(None)
    assert len(results) == 1


def test_cells_that_do_not_suit_are_refused() -> None:
    values = np.array([1.0, 1.1, -3.0], np.float32)
    cells = float_cells.choose(values)
    assert cells is not None
    for other in (
        replace(cells, mantissa=3),
        replace(cells, grid=-2),
        replace(cells, cell=-60),
        replace(cells, mantissa=24),
        replace(cells, cell=5000),
        replace(cells, cell=-4, grid=-4),
    ):
        with pytest.raises(ValueError, match="arguments"):
            float_cells.split(values, other)
    with pytest.raises(ValueError, match="float32"):
        float_cells.choose(np.zeros(3, np.float16))


def test_damaged_parts_are_refused() -> None:
    values = np.random.default_rng(7).normal(0, 1, (3, 20, 30)).astype(np.float32)
    cells = float_cells.choose(values)
    assert cells is not None
    parts = float_cells.split(values, cells)
    for damaged in (
        replace(parts, bits=parts.bits[:-1]),
        replace(parts, bits=parts.bits + b"\1"),
        replace(parts, bits=b""),
        replace(parts, classes=np.ones_like(parts.classes)),
        replace(parts, samples=np.full_like(parts.samples, 1 << 30)),
        replace(parts, samples=np.full_like(parts.samples, -(1 << 31))),
    ):
        with pytest.raises(FormatError):
            float_cells.join(damaged, cells, values.dtype)
        for name in library.backends():
            library.use_backend(name)
            with pytest.raises(FormatError):
                float_cells.join(damaged, cells, values.dtype)
        library.use_backend(None)


@pytest.mark.parametrize("dtype", FLOATS)
def test_random_parts_harm_nothing(dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(8)
    for _ in range(300):
        cell, grid = (int(n) for n in rng.integers(-1200, 1201, 2))
        cells = FloatCells(cell, grid, int(rng.integers(0, 24)), (1, 2))
        samples = rng.integers(-(1 << 31), 1 << 31, 20) >> rng.integers(0, 32, 20)
        classes = rng.integers(0, 4, 20) * (rng.random() < 0.5)
        parts = SplitFloats(
            classes.astype(np.uint8), samples.astype(np.int32), rng.bytes(int(rng.integers(0, 200)))
        )
        try:
            float_cells.join(parts, cells, dtype)
        except FormatError:
            continue
