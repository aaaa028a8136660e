"""Every coder of slabs obeys the law of `SlabCoder`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from laws import check_slab_coder
from nifti_files import smooth, voxels
from numpy.typing import NDArray

from mricodec import codec
from mricodec.bitstream.fields import pack_varint
from mricodec.codec.coders.base import LossyParams
from mricodec.codec.coders.learned import LearnedCoder
from mricodec.codec.coders.predictive import PredictiveCoder
from mricodec.codec.coders.store import StoreCoder
from mricodec.codec.loading import open_model
from mricodec.codec.settings import EFFORTS
from mricodec.codec.volume import DTYPES
from mricodec.codec.voxels.intensity import Intensity, Statistics
from mricodec.codec.voxels.mappings import SampleMap, bounded_map, exact_map
from mricodec.models.loader import load_model

SHAPES = [(1, 1, 1), (3, 9, 11), (2, 16, 7), (3, 9, 11)]


def slabs(dtype: str | np.dtype[Any], scale: float = 1.0) -> list[NDArray[Any]]:
    """Parts of one scan, two of them of one shape."""
    scan = smooth((5, 40, 40), top=200.0) * scale
    parts = [scan[:n, :h, :w] for n, h, w in SHAPES]
    parts[-1] = scan[1:4, 20:29, 10:21]
    return [np.ascontiguousarray(part.astype(dtype)) for part in parts]


def statistics_of(parts: list[NDArray[Any]]) -> Statistics:
    statistics = Statistics(parts[0].dtype)
    for part in parts:
        statistics.add(part)
    return statistics


def lossless_map(parts: list[NDArray[Any]]) -> SampleMap:
    sample_map = exact_map(parts[0].dtype, statistics_of(parts), iter(parts))
    assert sample_map is not None
    return sample_map


@pytest.mark.parametrize("name", DTYPES)
def test_store(name: str) -> None:
    random = np.random.default_rng(0)
    check_slab_coder(StoreCoder(DTYPES[name]), [voxels(random, name, shape) for shape in SHAPES])


@pytest.mark.parametrize(
    ("dtype", "scale", "kind"),
    [
        ("u1", 1.0, "AffineMap"),
        ("i2", 1.0, "AffineMap"),
        ("f4", 1.0, "AffineMap"),
        ("f4", 0.1, "FloatGridMap"),
        ("f8", float(np.float32(1 / 3)), "FloatGridMap"),
    ],
)
def test_predictive(dtype: str, scale: float, kind: str) -> None:
    parts = slabs(dtype, scale)
    sample_map = lossless_map(parts)
    assert type(sample_map).__name__ == kind
    check_slab_coder(PredictiveCoder(sample_map, np.dtype(dtype)), parts)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u8"])
def test_predictive_with_a_palette(dtype: str) -> None:
    if dtype[0] == "f":
        palette = np.array([-np.inf, -7.25, -0.0, 0.0, 1e-5, 3.1, 40000, np.inf, np.nan], dtype)
    else:
        palette = np.array([0, 1, 5, 1 << 20, 1 << 24, (1 << 31) - 1], dtype)
    parts = [palette[part.astype(int) % palette.size] for part in slabs("i2")]
    sample_map = lossless_map(parts)
    assert type(sample_map).__name__ == "PaletteMap"
    check_slab_coder(PredictiveCoder(sample_map, np.dtype(dtype)), parts)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u8"])
def test_predictive_in_the_order_of_the_bits(dtype: str) -> None:
    random = np.random.default_rng(0)
    scale = 1e9 if dtype[0] in "iu" else 1.0
    parts = [(random.normal(1, 0.1, shape) * scale).astype(dtype) for shape in SHAPES]
    sample_map = lossless_map(parts)
    assert type(sample_map).__name__ == "BitOrderMap"
    check_slab_coder(PredictiveCoder(sample_map, np.dtype(dtype)), parts)


@pytest.mark.parametrize("effort", EFFORTS)
def test_predictive_at_every_effort(effort: str) -> None:
    parts = slabs("i2")
    check_slab_coder(PredictiveCoder(lossless_map(parts), np.dtype("i2"), effort=effort), parts)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("bound", [1.0, 2.7, 20.0])
def test_predictive_within_a_bound(dtype: str, bound: float) -> None:
    parts = slabs(dtype, 0.93 if dtype[0] == "f" else 1.0)
    mapped = bounded_map(np.dtype(dtype), statistics_of(parts), bound)
    assert mapped is not None
    sample_map, max_error = mapped
    coder = PredictiveCoder(sample_map, np.dtype(dtype), max_error)
    payloads = check_slab_coder(coder, parts, max_error=bound)
    lossless = PredictiveCoder(lossless_map(parts), np.dtype(dtype)).encode(parts)
    assert len(payloads[1]) < len(lossless[1][0])


@pytest.mark.parametrize(("count", "max_error"), [(1, 0), (2, 0), (2, 3)])
def test_predictive_with_references(count: int, max_error: int) -> None:
    slab = smooth((6, 40, 40), noise=40.0)
    random = np.random.default_rng(1)
    references = [slab + random.integers(-9, 10, slab.shape, np.int32) for _ in range(count)]
    coder = PredictiveCoder(lossless_map([slab]), slab.dtype, max_error)
    (payload,) = check_slab_coder(coder, [slab], max_error=max_error, references=references)
    assert len(payload) < len(coder.encode([slab])[0][0])


def test_predictive_over_a_bounded_layer() -> None:
    slab = smooth((6, 40, 40), noise=40.0)
    sample_map = lossless_map([slab])
    bounded = PredictiveCoder(sample_map, slab.dtype, 3)
    ((_, values),) = bounded.encode([slab])
    coder = PredictiveCoder(sample_map, slab.dtype, base=(sample_map, 3))
    (payload,) = check_slab_coder(coder, [slab], references=[sample_map.samples(values)])
    assert len(payload) < len(PredictiveCoder(sample_map, slab.dtype).encode([slab])[0][0])


@pytest.mark.parametrize("count", [0, 3, 200])
def test_numbers_of_parts_that_no_slab_has(count: int) -> None:
    slab = smooth((2, 4, 4))
    coder = PredictiveCoder(lossless_map([slab]), slab.dtype)
    with pytest.raises(codec.FormatError, match="parts"):
        coder.decode([b"\0" + pack_varint(count)], [(2, 4, 4)])


def learned(model: Any, parts: list[NDArray[Any]], *, has_background: bool) -> LearnedCoder:
    low, high = min(p.min().item() for p in parts), max(p.max().item() for p in parts)
    intensity = Intensity.for_lossy(parts[0].dtype, low, high)
    step = 8.0 / float(intensity.scale)
    params = LossyParams(step, intensity.peak, (2.5, 0.8, 0.8))
    return LearnedCoder(model, intensity, params, has_background)


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f2", "f4", "f8"])
def test_learned(dtype: str, has_background: bool) -> None:
    """A quantiser of step 8 whose samples are rounded: no error is above half a step and a half."""
    parts = slabs(dtype, 0.93 if dtype[0] == "f" else 1.0)
    coder = learned(FakeModel(), parts, has_background=has_background)
    check_slab_coder(coder, parts, max_error=5.0)


@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("name", ["default", "hyperprior", "factorized", "vae", "cnn8", "unet"])
def test_learned_with_every_model(name: str, has_background: bool) -> None:
    parts = slabs("i2")[1:]
    coder = learned(load_model(name), parts, has_background=has_background)
    check_slab_coder(coder, parts, max_error=None)


def test_the_c_core_decodes_to_where_the_values_belong() -> None:
    slab = slabs("i2")[1]
    coder = learned(open_model("default", "cpu"), [slab], has_background=True)
    payloads = check_slab_coder(coder, [slab], max_error=None)
    out = np.zeros_like(slab)
    (values,) = coder.decode(payloads, [(len(slab), *slab.shape[1:])], outputs=[out])
    assert np.shares_memory(values, out) and out.any()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_an_array_in_memory_does_not_matter(order: tuple[int, ...]) -> None:
    """Slabs are views, of arrays whose axes lie in any order, with loss and without."""
    volume = np.random.default_rng(0).normal(500, 30, (10, 24, 30)).astype(np.int16)
    volume[:, :9] = 0  # A background that is kept exact.
    laid_out = np.ascontiguousarray(volume.transpose(order)).transpose(np.argsort(order))
    assert np.array_equal(laid_out, volume)
    for options in ({"quality": 50}, {"max_error": 4}, {"lossless": True}):
        assert codec.encode(laid_out, **options) == codec.encode(volume, **options)
