"""Bounded streams: every voxel is within the bound, and the bound saves what it should."""

from __future__ import annotations

import gzip
import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from streams import NUMBERS, encode, lossless, noisy_waves

from mricodec import codec

SHAPES = st.lists(st.integers(1, 11), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bound", [1, 2.5, 7])
def test_every_voxel_is_within_the_bound(name: str, bound: float) -> None:
    for order in "<>":
        array = noisy_waves((3, 14, 17), name)
        stream, report = encode(array.astype(array.dtype.newbyteorder(order)), max_error=bound)
        assert (report.mode, report.max_error) == ("bounded", bound)
        again = codec.decode(stream).array
        error = np.abs(again.astype(np.float64) - array.astype(np.float64)).max()
        assert 0 < error <= bound and again.min() >= array.min() and again.dtype == array.dtype
        assert report.fidelity is not None
        assert np.abs(error - report.fidelity.max_error) <= 0.001 * bound
        info = codec.info(stream)
        assert (info.mode, info.max_error, info.exact) == ("bounded", bound, True)
        codec.verify(stream, deep=True)


@settings(max_examples=80, deadline=None)
@examples(
    SHAPES, st.sampled_from(NUMBERS), st.floats(1e-3, 1e5), st.floats(1e-3, 1e6), st.integers(0, 9)
)
def test_any_bound_holds_on_anything(
    shape: tuple[int, ...], name: str, bound: float, spread: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(0, spread, shape) + random.choice([0.0, 1e4, -1e6])
    dtype = np.dtype(name)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    array = np.clip(values, float(limits.min) / 2, float(limits.max) / 2).astype(dtype)
    stream, report = encode(array, max_error=bound)
    again = codec.decode(stream).array
    if report.mode == "lossless":
        assert again.tobytes() == array.tobytes() and report.reason
    else:
        assert (np.abs(again.astype(np.longdouble) - array.astype(np.longdouble)) <= bound).all()
        assert again.min() >= array.min() or dtype.kind == "f"


def test_a_bound_saves_what_it_should() -> None:
    array = noisy_waves((8, 64, 64))
    sizes = [len(encode(array, max_error=bound)[0]) for bound in (1, 2, 4, 8)]
    sizes.insert(0, len(lossless(array)))
    assert all(
        finer > coarser + 0.4 / 8 * array.size for finer, coarser in itertools.pairwise(sizes[:4])
    )


def test_a_bound_keeps_an_empty_background() -> None:
    array = noisy_waves((6, 60, 60))
    array[:, :, 30:] = 0
    again = codec.decode(encode(array, max_error=3)[0]).array
    assert (
        np.count_nonzero(again[:, :, 34:]) < 0.01 * array.size
    )  # but for a few voxels beside the edge


def test_a_bound_relative_to_the_noise() -> None:
    array = noisy_waves((8, 64, 64), sigma=6)
    stream, report = encode(array, max_error="0.5sigma")
    info = codec.info(stream)
    assert info.max_error == report.max_error == pytest.approx(3, rel=0.2)
    assert info.fidelity is not None and info.fidelity.sigma_hat == pytest.approx(6, rel=0.2)
    flat = np.tile(np.arange(64, dtype=np.int16), (4, 64, 1))
    _, report = encode(flat, max_error="0.5sigma")
    assert (report.mode, report.reason) == ("lossless", "no noise was found in it")


def test_where_no_bound_means_anything_it_is_lossless() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (4, 20, 20)).astype(np.int16)
    odd = noisy_waves((4, 20, 20), "float32")
    odd[0, 0, 0] = np.nan
    for array in (labels, odd, odd.astype(np.complex64), np.full((2, 3, 4), 7, np.int16)):
        stream, report = encode(array, max_error=3)
        assert report.mode == "lossless" and report.reason
        assert codec.decode(stream).array.tobytes() == array.tobytes()
    _, report = encode(noisy_waves((4, 20, 20)), max_error=0.5)
    assert report.mode == "lossless" and "allows no other value" in str(report.reason)


def test_real_scans_with_everything(scan_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream, report = encode(scan_path, lossless=True)
    out = io.BytesIO()
    codec.decode_file(stream, out)
    assert out.getvalue() == gzip.decompress(scan_path.read_bytes())
    bounded, bounded_report = encode(scan_path, max_error="1sigma")
    original = codec.decode(stream).array.astype(float)
    error = np.abs(codec.decode(bounded).array - original).max()
    assert bounded_report.max_error is not None and error <= bounded_report.max_error
    assert len(bounded) < 0.7 * len(stream) and report.mode == "lossless"
