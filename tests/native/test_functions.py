"""The kernels of the C core by themselves, against numpy, torch and constriction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mricodec import codec
from mricodec.bitstream.range_coder import EntropyDecoder, EntropyEncoder
from mricodec.bitstream.symbols import ProbabilityTables, normalised
from mricodec.codec.native import functions
from mricodec.models.lossy import lapped_transform as transform
from mricodec.models.lossy.bit_exact import integer_sums
from mricodec.models.lossy.tensors import padded


def raster(coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients in zigzag order [..., 64] -> at 8 u + w."""
    out = torch.empty_like(coefficients)
    out[..., transform.zigzag()] = coefficients
    return out


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 17, 30), (3, 64, 9)])
def test_analysis(shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 4000, shape).astype(np.int32)
    expected = raster(transform.analysis(padded(x) / 3)).numpy()
    assert np.allclose(functions.analysis(x, 3.0), expected, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 17, 30), (19, 24, 9)])
def test_synthesis_is_exact(shape: tuple[int, int, int], depth: int) -> None:
    k, h, w = shape
    groups, blocks = -(-k // depth), (-(-h // 8), -(-w // 8))
    rng = np.random.default_rng(1)
    bands = rng.integers(-(1 << 23), 1 << 23, (groups * depth, *blocks, 64)).astype(np.int32)
    bands >>= rng.integers(0, 24, bands.shape)
    slices = transform.synthesis_across(
        torch.from_numpy(bands).flatten(1).double(), depth, slice(0, k)
    ).unflatten(1, (*blocks, 64))
    step = 123_457
    v = transform.synthesis(slices).clamp(-(1 << 26), 1 << 26)[:, :h, :w].to(torch.int64)
    expected = ((v * step + (1 << 19)) >> 20).clamp(-(1 << 31), (1 << 31) - 1).numpy()
    result = functions.synthesis(raster(torch.from_numpy(bands)).numpy(), shape, depth, step)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("inputs", [8, 48])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 21)])
def test_convolution_is_exact(shape: tuple[int, int], inputs: int, size: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(-127, 256, (*shape, inputs)).astype(np.int16)
    weight = rng.integers(-127, 128, (50, inputs, size, size)).astype(np.int8)
    weight[rng.random(weight.shape) < 0.5] = 0
    bias, shift = rng.integers(-(1 << 20), 1 << 20, 50), rng.integers(0, 15, 50)
    bias, shift = bias.astype(np.int32), shift.astype(np.uint8)
    sums = integer_sums(
        torch.from_numpy(x).permute(2, 0, 1)[None],
        torch.from_numpy(weight),
        torch.from_numpy(bias),
    )[0]
    expected = torch.round(sums / torch.exp2(torch.from_numpy(shift).double())[:, None, None])
    result = functions.convolution(x, weight, bias, shift)
    assert np.array_equal(result, expected.permute(1, 2, 0).numpy())


def test_convolution_refuses_sums_that_are_not_exact() -> None:
    weight = np.full((1, 96, 9, 9), 127, np.int8)[:, :, :3, :3]
    x = np.zeros((2, 2, 96), np.int16)
    with pytest.raises(ValueError, match="not exact"):
        functions.convolution(x, weight, np.zeros(1, np.int32), np.zeros(1, np.uint8))


def tables_of(octave: int, rng: np.random.Generator) -> ProbabilityTables:
    shares = rng.random((20, 34)) ** 8 + 1e-9
    return ProbabilityTables(normalised(shares), 0 if octave else -16, octave)


@pytest.mark.parametrize("octave", [0, 8])
@pytest.mark.parametrize("largest", [1, 40, 1 << 30])
def test_the_bytes_of_constriction(octave: int, largest: int) -> None:
    rng = np.random.default_rng(octave + largest)
    tables = tables_of(octave, rng)
    sizes = [0, 1, 500, 3, 2000]
    n = sum(sizes)
    index = rng.integers(0, 60 if octave else 20, n).astype(np.uint8)
    values = rng.integers(-largest, largest, n) if not octave else rng.integers(0, largest, n)
    values = (values >> rng.integers(0, 31, n)).astype(np.int32)
    if octave:
        values[index == 0] = 0
    reference = EntropyEncoder()
    reference.code_calls(tables, index, values, sizes)
    run = reference.finish()
    assert functions.entropy_encode(tables, index, values, sizes) == run
    assert np.array_equal(functions.entropy_decode(tables, index, run, sizes), values)


def test_values_beyond_int32_are_clamped() -> None:
    tables = tables_of(0, np.random.default_rng(3))
    index = np.zeros(4, np.uint8)
    values = np.array([1 << 40, -(1 << 62), (1 << 31) - 1, -(1 << 31)])
    reference = EntropyEncoder()
    reference.code(tables, index, values)
    result = functions.entropy_decode(tables, index, reference.finish(), [4])
    assert result.tolist() == np.clip(values, -(1 << 31), (1 << 31) - 1).tolist()


def test_random_bytes_decode_as_constriction_does() -> None:
    """The same values, or both refuse them."""
    rng = np.random.default_rng(4)
    tables = tables_of(8, rng)
    index = rng.integers(0, 60, 200).astype(np.uint8)
    refused = 0
    for size in range(0, 400, 4):
        data = rng.bytes(size)
        try:
            reference = EntropyDecoder(data)
            values = reference.code(tables, index)
            reference.finish()
        except codec.FormatError:
            refused += 1
            with pytest.raises(codec.FormatError):
                functions.entropy_decode(tables, index, data, [200])
            continue
        expected = np.clip(values, -(1 << 31), (1 << 31) - 1)
        assert np.array_equal(functions.entropy_decode(tables, index, data, [200]), expected)
    assert refused > 50
