"""Previews: a reduced scan inside a stream, small and close."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from streams import encode, noisy_waves

from mricodec import codec
from mricodec.codec.pipeline import preview_stream
from mricodec.codec.tiling import Tiling
from mricodec.codec.voxels import preview


def test_a_preview_is_small_and_close() -> None:
    array = noisy_waves((24, 130, 127), sigma=4)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    volume = codec.Volume.from_array(array, spacing_mm=(3.0, 2.0, 1.0), affine=affine)
    stream, _ = encode(volume, lossless=True)
    info = codec.info(stream)
    # The size is aimed at by an estimate; a preview of more than twice that size is left out.
    limit = 2 * preview_stream.PREVIEW_SHARE * len(stream)
    assert info.preview and dict(info.sections)["pREV"] <= limit
    small = codec.decode(stream, preview=True)
    expected = preview.reduced_scan(array, Tiling(array.shape, 0, 24))
    assert small.array.shape == expected.shape == (24, 33, 32)
    assert np.abs(small.array.astype(int) - expected).max() <= 16
    assert small.spacing_mm == (3.0, 8.0, 4.0)
    assert small.affine is not None
    assert (small.affine @ [1, 1, 1, 1])[:3].tolist() == [5.5, 11.0, 3.0]


def test_a_preview_without_one_inside(tmp_path: Path) -> None:
    for array in (
        noisy_waves((5, 9, 6)),
        noisy_waves((2, 3, 8, 8), "float32"),
        noisy_waves((7,)),
        np.ones((2, 5, 5), np.complex64),
    ):
        stream, _ = encode(array, lossless=True)
        assert not codec.info(stream).preview
        small = codec.decode(stream, preview=True).array
        assert small.dtype == array.dtype and small.ndim == array.ndim and small.size < array.size
    codec.decode_file(
        encode(noisy_waves((5, 9, 6)), lossless=True)[0], tmp_path / "small.nii", preview=True
    )
    assert nibabel.load(tmp_path / "small.nii").shape == (2, 3, 5)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="preview: expected neither slices"):
        codec.decode(encode(noisy_waves((5, 9, 6)), lossless=True)[0], preview=True, slices=(0, 1))
