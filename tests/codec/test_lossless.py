"""Lossless streams: every bit comes back, in few bytes."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from streams import encode, lossless, noisy_waves

from mricodec import codec
from mricodec.bitstream.container import ContainerReader
from mricodec.bitstream.fields import ByteReader
from mricodec.codec.voxels.mappings import unpack_map

SHAPES = st.lists(st.integers(1, 11), min_size=1, max_size=4).map(tuple)


def map_of(stream: bytes) -> str:
    """The name of the sample map of a stream."""
    header = ContainerReader(stream).header
    if header.coder == 0:
        return "store"
    sample_map = unpack_map(ByteReader(header.params, "HEAD"), np.dtype(header.dtype))
    return type(sample_map).__name__


def test_floats_on_a_grid_cost_what_their_integers_do() -> None:
    integers = noisy_waves((6, 48, 48), "int16")
    plain = len(lossless(integers))
    for slope, inter in ((0.1, 0.0), (2.44140625, -1024.0), (1 / 3, 12.5), (1e-5, 0.0)):
        for dtype in (np.float32, np.float64):
            stream = lossless((integers * np.float32(slope) + np.float32(inter)).astype(dtype))
            if map_of(stream) == "FloatGridMap":
                assert len(stream) < plain + 120
            else:  # Values that were rounded twice lie on no grid.
                assert map_of(stream) == "PaletteMap" and len(stream) < plain + 120 + 8 * 130
    assert map_of(lossless((integers * np.float32(0.1)).astype(np.float32))) == "FloatGridMap"


def test_few_odd_values_are_a_palette() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 1, 60), [np.nan, np.inf, -np.inf, 0.0, -0.0]]).astype(
        np.float32
    )
    smooth_ranks = noisy_waves((6, 48, 48), "int16") % values.size
    array = values[np.sort(smooth_ranks, axis=2)]
    stream = lossless(array)
    assert map_of(stream) == "PaletteMap" and len(stream) < array.nbytes / 7


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint64, np.int32])
def test_anything_else_is_ordered_and_smaller_than_with_zstd(dtype: type) -> None:
    array = noisy_waves((6, 48, 48), "float64") * (1e-3 if np.dtype(dtype).kind == "f" else 1e7)
    array = array.astype(dtype)
    stream = lossless(array)
    planes = np.ascontiguousarray(array.reshape(-1, 1).view(np.uint8).reshape(array.size, -1).T)
    assert map_of(stream) == "BitOrderMap" and len(stream) < 0.985 * len(
        zstandard.compress(planes.tobytes(), 19)
    )


@settings(max_examples=60, deadline=None)
@examples(
    st.sampled_from(["float16", "float32", "float64", "int64", "uint64", "uint32"]),
    st.integers(0, 99),
    SHAPES,
)
def test_any_bits_come_back(name: str, seed: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    dtype = np.dtype(name)
    bits = random.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if seed % 3 == 0:
        bits[..., 1:] &= 3
    lossless(np.ascontiguousarray(bits).view(dtype).reshape(shape))


def test_noise_hardly_expands() -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, (64, 128, 128)).astype(np.uint16)
    assert len(lossless(noise)) <= 1.001 * noise.nbytes
    assert len(lossless(noise[:20].copy())) <= 1.001 * noise[:20].nbytes
    small = noise[:2, :30, :30].copy()
    assert len(lossless(small)) <= small.nbytes + 300
    assert len(lossless(noise.view(np.float16).copy()[:2])) <= noise[:2].nbytes + 300


def test_an_empty_volume_is_next_to_nothing() -> None:
    assert len(lossless(np.zeros((256, 256, 256), np.int16))) <= 400


def test_efforts_differ_in_size_and_decode_alike() -> None:
    array = noisy_waves((12, 80, 80), sigma=3)
    sizes = []
    for effort in ("fast", "default", "high"):
        stream, _ = encode(array, lossless=True, effort=effort)
        assert (codec.decode(stream).array == array).all()
        sizes.append(len(stream))
    assert sizes[0] <= 1.1 * sizes[1] and sizes[2] <= 1.005 * sizes[1]


def test_volumes_that_are_alike_help_each_other() -> None:
    first = noisy_waves((6, 40, 40), sigma=8)
    series = np.stack(
        [first + np.random.default_rng(n).integers(-2, 3, first.shape) for n in range(11)]
    ).astype(np.int16)
    alone = sum(len(lossless(volume)) for volume in series)
    stream = lossless(series)
    assert len(stream) < 0.85 * alone
    for volumes in ((0, 1), (5, 7), (7, 10), (10, 11)):
        part = codec.decode(stream, volumes=volumes, slices=(2, 5)).array
        assert (part == series[slice(*volumes), 2:5]).all()
    bounded, _ = encode(series, max_error=2)
    assert np.abs(codec.decode(bounded, volumes=(9, 11)).array - series[9:11]).max() <= 2
