"""Streams of small arrays, and damage to them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec import codec

# Stored types of numbers.
NUMBERS = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64",
)  # fmt: skip


def encode(source: Any, **options: Any) -> tuple[bytes, codec.EncodeReport]:
    """The stream of a scan, and its report."""
    out = io.BytesIO()
    report = codec.Encoder(**options).encode_file(source, out)
    assert report.stream_bytes == len(out.getvalue())
    return out.getvalue(), report


def lossless(array: NDArray[Any]) -> bytes:
    """The lossless stream of an array, which decodes to it bit by bit."""
    stream, report = encode(array, lossless=True)
    decoded = codec.decode(stream).array
    assert report.mode == "lossless"
    assert decoded.tobytes() == array.tobytes()
    assert decoded.dtype == array.dtype and decoded.shape == array.shape
    return stream


def noisy_waves(
    shape: tuple[int, ...], dtype: str = "int16", sigma: float = 5.0, seed: int = 0
) -> NDArray[Any]:
    """Smooth waves with noise, from 0 to 120 for integer types."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(0, 6, n) for n in shape], indexing="ij")
    waves = sum(np.sin(axis + n) for n, axis in enumerate(grid)) / len(shape)
    array = 60 + 25 * waves + random.normal(0, sigma, shape)
    return (array if dtype.startswith("float") else np.rint(np.clip(array, 0, 120))).astype(dtype)


def flip(stream: bytes, bit: int) -> bytes:
    """The stream with one bit flipped."""
    damaged = bytearray(stream)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
