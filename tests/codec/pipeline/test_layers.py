"""Layers: streams inside a stream that decode alone, and together to the finest."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fake_model import FakeModel
from nifti_files import single
from streams import encode, noisy_waves

from mricodec import codec


@pytest.mark.parametrize("name", ["int16", "uint8", "float32", "float64"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_layers_decode_alone_and_together(model: FakeModel, name: str, order: str) -> None:
    array = noisy_waves((6, 24, 26), name)
    raw = single(array.astype(array.dtype.newbyteorder(order)), b"\1\0\0\0" + bytes(28), b"trailer")
    stream, report = encode(io.BytesIO(raw), lossless=True, layers=True, max_error=3)
    assert report.layers == ("lossy", "bounded") and codec.info(stream).layers == report.layers
    out = io.BytesIO()
    codec.decode_file(stream, out)
    assert out.getvalue() == raw
    errors = [
        np.abs(codec.decode(stream, layer=n).array.astype(float) - array).max() for n in (1, 2, 3)
    ]
    assert errors[0] > 0 and 0 < errors[1] <= 3 and errors[2] == 0
    assert codec.decode(stream, layer=1).header == raw[:380]
    assert (codec.decode(stream, slices=(1, 3)).array == array[1:3]).all()
    codec.verify(stream, deep=True)
    with pytest.raises(ValueError, match="layer: expected a number from 1 to 3, found 4"):
        codec.decode(stream, layer=4)


def test_a_bound_over_a_lossy_layer(model: FakeModel) -> None:
    array = noisy_waves((6, 24, 26))
    stream, report = encode(array, max_error=2, layers=True, quality=30)
    assert report.mode == "bounded" and report.layers == ("lossy",)
    assert np.abs(codec.decode(stream).array - array).max() <= 2
    labels = np.random.default_rng(0).integers(0, 4, (4, 20, 20)).astype(np.int16)
    report = encode(labels, lossless=True, layers=True)[1]
    assert report.layers == () and report.no_layers == "it is a label map"


def test_damage_in_a_layer_is_found(model: FakeModel) -> None:
    stream, _ = encode(noisy_waves((3, 9, 11)), lossless=True, layers=True)
    for length in range(0, len(stream), 7):
        with pytest.raises(codec.FormatError):
            codec.decode(stream[:length])
    random = np.random.default_rng(0)
    for bit in random.integers(0, 8 * len(stream), 150).tolist():
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(codec.FormatError):
            codec.decode(bytes(damaged))
