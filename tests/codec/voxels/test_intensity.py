"""Lossy intensity maps are within their error; label maps and other scans without loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nifti_files import smooth
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader
from mricodec.codec.voxels.intensity import (
    LOSSY_SAMPLES,
    Intensity,
    Statistics,
    lossless_reason,
    lossy_range,
)

INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


def statistics(array: NDArray[Any]) -> Statistics:
    collected = Statistics(array.dtype)
    for slab in array.reshape(-1, *array.shape[-2:])[:, None]:
        collected.add(slab)
    return collected


def reason(array: NDArray[Any], sigma: float = 1.0, declared_labels: bool = False) -> str | None:
    return lossless_reason(array.dtype, statistics(array), sigma, declared_labels=declared_labels)


def repacked(intensity: Intensity) -> Intensity:
    fields = ByteReader(intensity.pack(), "HEAD")
    again = Intensity.unpack(fields, intensity.dtype)
    fields.end()
    return again


@examples(st.data(), st.sampled_from(INTEGERS))
def test_integers_of_a_small_range_are_exact(data: st.DataObject, kind: str) -> None:
    dtype = np.dtype(kind)
    info = np.iinfo(dtype)
    low = data.draw(st.integers(max(info.min, -(1 << 61)), min(info.max, 1 << 61)))
    high = data.draw(st.integers(low, min(low + LOSSY_SAMPLES - 1, info.max)))
    values = data.draw(hnp.arrays(dtype, (2, 3, 4), elements=st.integers(low, high)))
    intensity = repacked(Intensity.for_lossy(dtype, int(values.min()), int(values.max())))
    samples = intensity.samples(values)
    assert (
        samples.dtype == np.int32
        and 0 <= samples.min() <= samples.max() <= intensity.peak < LOSSY_SAMPLES
    )
    restored = intensity.values(samples)
    assert restored.dtype == dtype and (restored == values).all()


@examples(st.data(), st.sampled_from(INTEGERS))
def test_the_error_of_a_wide_range_is_as_stated(data: st.DataObject, kind: str) -> None:
    dtype = np.dtype(kind)
    info = np.iinfo(dtype)
    limits = st.integers(max(info.min, -(1 << 61)), min(info.max, 1 << 61))
    values = data.draw(hnp.arrays(dtype, (2, 3, 4), elements=limits))
    low, high = int(values.min()), int(values.max())
    intensity = repacked(Intensity.for_lossy(dtype, low, high))
    samples = intensity.samples(values)
    assert 0 <= samples.min() <= samples.max() <= intensity.peak < LOSSY_SAMPLES
    restored = [int(v) for v in intensity.values(samples).ravel()]
    assert min(restored) >= low and max(restored) <= high
    errors = [abs(a - int(b)) for a, b in zip(restored, values.ravel(), strict=True)]
    assert max(errors) <= intensity.max_error


@examples(
    hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(-1e9, 1e9)),
    st.sampled_from(["f2", "f4", "f8"]),
)
def test_the_error_of_real_numbers_is_as_stated(values: NDArray[Any], kind: str) -> None:
    values = np.clip(values, -60000, 60000).astype(kind) if kind == "f2" else values.astype(kind)
    low, high = float(values.min()), float(values.max())
    intensity = Intensity.for_lossy(values.dtype, low, high)
    if intensity.scale == 0:
        return
    assert repacked(intensity) == intensity
    restored = intensity.values(intensity.samples(values))
    assert restored.dtype == values.dtype and low <= restored.min() and restored.max() <= high
    resolution = float(np.spacing(np.abs(values).max()))
    error = np.abs(restored.astype(np.float64) - values).max()
    assert error <= intensity.max_error * (1 + 1e-9) + resolution


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_real_numbers_that_are_integers(kind: str) -> None:
    values = smooth((3, 16, 16)).astype(kind)
    collected = statistics(values)
    assert collected.integral and collected.integer_range() == (0, int(values.max()))
    intensity = Intensity.for_lossy(values.dtype, *lossy_range(collected))
    assert intensity.scale == 1 and (intensity.values(intensity.samples(values)) == values).all()
    values[0, 0, 0] = -0.0
    assert statistics(values).integer_range() is None
    values[0, 0, 0] = 0.5
    assert statistics(values).integer_range() is None


def test_samples_beyond_the_range_are_clipped() -> None:
    intensity = Intensity.for_lossy(np.dtype("u1"), 10, 250)
    samples = np.array([-1000, 0, 240, 100000], np.int32)
    assert intensity.values(samples).tolist() == [10, 10, 250, 250]


@settings(max_examples=300)
@examples(st.binary(max_size=24), st.sampled_from(["u1", "i2", "i8", "f4", "f8", "c8", "V3"]))
def test_damaged_map(data: bytes, kind: str) -> None:
    dtype = np.dtype(kind)
    try:
        intensity = Intensity.unpack(ByteReader(data, "HEAD"), dtype)
    except FormatError:
        return
    if np.isfinite(float(intensity.scale)) and intensity.scale > 0:
        values = intensity.values(np.array([0, 1, 1 << 30], np.int32))
        assert values.dtype == dtype
        assert (values >= intensity.minimum).all() and (values <= intensity.maximum).all()


def blobs(
    labels: int, shape: tuple[int, int, int] = (12, 64, 64), seed: int = 0
) -> NDArray[np.int64]:
    """Regions of many sizes, one number each."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (labels - 1, 3)) * shape
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 1, 3)
    nearest = ((grid - centres) ** 2).sum(2).argmin(1).reshape(shape) + 1
    _, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.where(j**2 + i**2 < 0.8, nearest, 0)


@pytest.mark.parametrize("labels", [2, 4, 30, 100])
@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "f4", "f8"])
def test_label_maps_are_found(labels: int, kind: str) -> None:
    assert reason(blobs(labels).astype(kind)) == "it is a label map"


def test_label_maps_with_spread_numbers_are_found() -> None:
    numbers = np.random.default_rng(0).integers(1, 2**31, 100)
    numbers[0] = 0
    assert reason(numbers[blobs(100)].astype("i4")) == "it is a label map"


def test_a_noisy_segmentation_is_found() -> None:
    noisy = smooth((8, 64, 64), noise=100.0) // 400
    assert reason(noisy.astype("u1")) == "it is a label map"


@pytest.mark.parametrize("noise", [2.0, 5.0, 50.0])
@pytest.mark.parametrize("kind", ["u2", "i4", "f4"])
def test_scans_are_no_label_maps(noise: float, kind: str) -> None:
    assert reason(smooth((8, 64, 64), noise).astype(kind)) is None


def test_a_scan_of_8_bits_and_a_smooth_map_are_no_label_maps() -> None:
    assert reason(smooth((8, 64, 64), noise=1.0, top=200.0).astype("u1")) is None
    assert reason(smooth((8, 64, 64), noise=0.0, top=300.0)) is None


def test_other_reasons() -> None:
    scan = smooth((4, 32, 32)).astype(np.float32)
    assert reason(scan, declared_labels=True) == "it is a label map"
    assert "constant" in str(reason(np.full((2, 3, 4), 7, "i2")))
    assert "constant" in str(reason(np.zeros((1, 1, 1), "f4")))
    for bad in (np.nan, np.inf, -np.inf):
        damaged = scan.copy()
        damaged[2, 3, 4] = bad
        assert "NaN" in str(reason(damaged))
    assert "complex" in str(reason(scan.astype("c8")))
    assert "RGB" in str(reason(np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])))
    assert "64 bits" in str(reason(scan.astype("longdouble")))
    wide = scan.astype(np.float64)
    wide[0, 0, 0] = 1e9
    assert "too wide" in str(reason(wide + 0.5, sigma=5.0))
    wide[0, 0, :2] = -1.5e308, 1.5e308
    assert "too wide" in str(reason(wide, sigma=0.0))
