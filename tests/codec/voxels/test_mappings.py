"""Every sample map obeys the law of `SampleMap`; which map a scan has; damaged maps."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from laws import check_sample_map
from nifti_files import smooth
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader
from mricodec.codec.voxels import mappings
from mricodec.codec.voxels.intensity import EXACT_SPAN, Intensity, Statistics
from mricodec.codec.voxels.mappings import (
    AffineMap,
    BitOrderMap,
    FloatGridMap,
    PaletteMap,
    SampleMap,
    bounded_map,
    exact_map,
    unpack_map,
)

INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]
NUMBERS = [*INTEGERS, "f2", "f4", "f8"]


def statistics_of(values: NDArray[Any]) -> Statistics:
    statistics = Statistics(values.dtype)
    statistics.add(values)
    return statistics


def map_of(values: NDArray[Any]) -> SampleMap:
    """The lossless map, which obeys the law."""
    sample_map = exact_map(values.dtype, statistics_of(values), iter([values]))
    assert sample_map is not None
    check_sample_map(sample_map, values)
    return sample_map


@examples(st.data(), st.sampled_from(INTEGERS))
def test_affine_map(data: st.DataObject, kind: str) -> None:
    """Integers of a range below 2**24 are exact; of a wider one they are within half a scale."""
    dtype = np.dtype(kind)
    lowest = max(np.iinfo(dtype).min, -(1 << 61))
    highest = min(np.iinfo(dtype).max, 1 << 61)
    low = data.draw(st.integers(lowest, highest))
    span = data.draw(st.sampled_from([255, EXACT_SPAN - 1, EXACT_SPAN, 1 << 40]))
    high = data.draw(st.integers(low, min(low + span, highest)))
    values = data.draw(hnp.arrays(dtype, (2, 3, 4), elements=st.integers(low, high)))
    minimum, maximum = int(values.min()), int(values.max())
    intensity = Intensity.quantised(dtype, minimum, maximum, EXACT_SPAN)
    sample_map = AffineMap(intensity)
    assert sample_map.exact == (maximum - minimum < EXACT_SPAN)
    check_sample_map(sample_map, values, max_error=intensity.max_error)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_affine_map_of_floats_that_are_integers(kind: str) -> None:
    values = smooth((3, 16, 16)).astype(kind)
    assert isinstance(map_of(values), AffineMap)
    far = np.array([[[-np.inf, -1e30 if kind != "f2" else -6e4, np.inf]]], kind)
    assert map_of(values).samples(far).tolist() == [[[0, 0, int(values.max())]]]


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize(("scale", "offset"), [(0.1, 0.0), (2.44140625, -1024.0), (1e-5, 0.0)])
def test_float_grid_map(kind: str, scale: float, offset: float) -> None:
    """A grid is verified on every distinct value: all come back bit by bit."""
    step, origin = (np.dtype(kind).type(np.float32(v)) for v in (scale, offset))
    values = smooth((3, 16, 16)) * step + origin
    sample_map = map_of(values)
    assert isinstance(sample_map, FloatGridMap) and values.dtype == kind
    check_sample_map(sample_map, values, max_error=0)


@pytest.mark.parametrize("kind", NUMBERS)
def test_palette_map(kind: str) -> None:
    """NaN, infinities and -0.0 are values like any other."""
    dtype = np.dtype(kind)
    random = np.random.default_rng(0)
    distinct = np.unique(random.integers(0, 256, 30 * dtype.itemsize, np.uint8).view(dtype))
    if dtype.kind == "f":
        odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
        distinct = np.concatenate([distinct[np.isfinite(distinct)], odd])
    ordered = np.unique(mappings.ordered_bits(distinct))
    values = distinct[random.integers(0, distinct.size, (4, 9, 9))]
    check_sample_map(PaletteMap(dtype, ordered), values)
    if dtype.kind == "f":
        assert isinstance(map_of(distinct.repeat(20).reshape(1, 20, -1)), PaletteMap)


@examples(st.sampled_from(NUMBERS), st.integers(0, 99), st.integers(1, 64))
def test_bit_order_map(kind: str, seed: int, bits: int) -> None:
    """Any bits of any range."""
    dtype = np.dtype(kind)
    random = np.random.default_rng(seed)
    raw = random.integers(0, 1 << min(bits, 63), 60, np.uint64)
    raw = raw >> np.uint64(max(0, min(bits, 63) - 8 * dtype.itemsize))
    values = mappings.from_ordered(raw, dtype).reshape(3, 4, 5)
    sample_map = BitOrderMap.over(dtype, int(raw.min()), int(raw.max()))
    check_sample_map(sample_map, values)


@settings(deadline=None)
@examples(
    st.sampled_from(["f2", "f4", "f8", "i8", "u8", "u4"]),
    st.integers(0, 99),
    st.booleans(),
    hnp.array_shapes(min_dims=3, max_dims=3),
)
def test_any_bits_have_a_map(kind: str, seed: int, few: bool, shape: tuple[int, int, int]) -> None:
    dtype = np.dtype(kind)
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if few:
        raw[..., 1:] &= 3
    map_of(np.ascontiguousarray(raw).view(dtype).reshape(shape))


@pytest.mark.parametrize("kind", ["f4", "f8", "i4", "u1"])
@pytest.mark.parametrize("bound", [0.3, 1, 3.7, 20])
def test_bounded_map(kind: str, bound: float) -> None:
    """Samples that differ by no more than the largest error give values within the bound."""
    values = smooth((4, 9, 9), top=200.0) * (0.93 if kind[0] == "f" else 1.0)
    values = values.astype(kind)
    mapped = bounded_map(values.dtype, statistics_of(values), bound)
    if kind[0] != "f" and bound < 1:
        assert mapped is None
        return
    assert mapped is not None
    sample_map, max_error = mapped
    check_sample_map(sample_map, values, max_error=bound)
    for shift in (-max_error, 0, max_error):
        moved = np.clip(sample_map.samples(values) + shift, 0, sample_map.peak)
        error = np.abs(sample_map.values(moved).astype(float) - values).max()
        assert error <= bound


def test_bounded_map_of_a_wide_range() -> None:
    """Integers beyond 2**24 are quantised; a bound below the error of that allows no map."""
    values = np.array([[[0, 1 << 30, 12345, 77]]], np.int32)
    assert bounded_map(values.dtype, statistics_of(values), 1.0) is None
    mapped = bounded_map(values.dtype, statistics_of(values), 1000.0)
    assert mapped is not None
    sample_map, max_error = mapped
    check_sample_map(sample_map, values, max_error=1000.0)
    moved = np.clip(sample_map.samples(values) + max_error, 0, sample_map.peak)
    assert np.abs(sample_map.values(moved).astype(np.int64) - values).max() <= 1000


def test_maps_of_no_integers() -> None:
    """Booleans, complex values and 128 bits have no map; the store coder takes them."""
    for dtype in ("?", "c8", "longdouble"):
        values = np.ones((2, 3, 4), dtype)
        assert exact_map(values.dtype, statistics_of(values), iter([values])) is None


@pytest.mark.parametrize("kind", NUMBERS)
def test_ordered_bits_rise_with_the_values(kind: str) -> None:
    bits = np.random.default_rng(1).integers(0, 256, 4096 * 8, np.uint8)
    values = bits.view(kind)
    ordered = mappings.ordered_bits(values)
    assert mappings.from_ordered(ordered, values.dtype).tobytes() == values.tobytes()
    sound = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.size, bool)
    rising = values[sound][np.argsort(ordered[sound], kind="stable")]
    assert (rising[1:] >= rising[:-1]).all()


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (3, struct.pack("<dd", 0.0, -1.0) + b"\5"),
        (3, struct.pack("<dd", math.nan, 1.0) + b"\5"),
        (3, struct.pack("<dd", 0.0, 1.0) + b"\0"),
        (4, b"\2\0"),
        (5, struct.pack("<QQ", 5, 4)),
        (5, struct.pack("<QQ", 0, 1 << 40)),
        (9, b""),
    ],
)
def test_damaged_maps(kind: int, payload: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_map(ByteReader(bytes((kind,)) + payload, "HEAD"), np.dtype(np.float32))


@settings(max_examples=300)
@examples(st.binary(max_size=24), st.sampled_from(["u1", "i2", "i8", "f4", "f8", "c8", "V3"]))
def test_any_bytes_are_a_map_or_a_format_error(data: bytes, kind: str) -> None:
    dtype = np.dtype(kind)
    try:
        sample_map = unpack_map(ByteReader(data, "HEAD"), dtype)
    except FormatError:
        return
    values = sample_map.values(np.array([0, 1, 1 << 30], np.int32))
    assert values.dtype == dtype and sample_map.peak < EXACT_SPAN
