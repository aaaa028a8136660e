"""JPEG 2000, HTJ2K and JPEG XL beside this codec, and what every still-picture codec needs to take a volume.

A volume becomes 16-bit samples counted from its least value, each slice [j, i] its own picture; the pictures
stand one after the other behind the table of their lengths, 4 bytes a slice. Shape, least value and step are
not in the bytes: in this comparison the peer is given them. Needs imagecodecs (extra `bench`), imported when
called.
"""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.voxels.metrics import Range

LARGEST = 65535


class MissingExtra(ImportError):
    """A package that only measuring and plotting need is not installed."""


def require(module: str) -> Any:
    """The imported module; MissingExtra with the way to install it if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        message = f"{package} is needed here and cannot be imported ({error}); pip install 'mricodec[bench]'"
        raise MissingExtra(message) from error


@dataclass(frozen=True)
class Samples:
    """How stored values stand for samples 0 ... `peak`: value = low + step x sample."""

    low: float  # least value of the whole volume, stored units
    step: float  # stored units; 1 unless the values are no integers or span more than 16 bits
    peak: int  # sample of the largest value
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, voxels: NDArray[Any], limits: Range) -> Samples:
        """For the part `voxels` of a volume with these (least, largest) stored values.

        ValueError for values that are not real and finite, or all equal.
        """
        low, high = limits
        if voxels.dtype.kind not in "iuf":
            raise ValueError(f"JPEG 2000 is given real numbers here, not {voxels.dtype}")
        if not (high > low and math.isfinite(high - low)):
            raise ValueError(
                f"JPEG 2000 is given finite values that differ here, these lie in {low:g} ... {high:g}"
            )
        integers = voxels.dtype.kind in "iu" or (
            low % 1 == 0 and all(bool((s % 1 == 0).all()) for s in voxels)
        )
        if integers and high - low <= LARGEST:
            return cls(low, 1.0, int(high - low), voxels.dtype)
        return cls(low, (high - low) / LARGEST, LARGEST, voxels.dtype)

    @property
    def bits(self) -> int:
        return self.peak.bit_length()

    def from_values(self, voxels: NDArray[Any]) -> NDArray[np.uint16]:
        """Stored values [..., j, i] -> samples [slices, j, i]."""
        slices = voxels.reshape(-1, *((1, 1, *voxels.shape)[-2:]))
        samples = np.empty(slices.shape, np.uint16)
        for sample, values in zip(samples, slices, strict=True):
            sample[...] = np.rint((values.astype(np.float64) - self.low) / self.step)
        return samples

    def to_values(self, samples: NDArray[np.uint16], shape: tuple[int, ...]) -> NDArray[Any]:
        """Samples [slices, j, i] -> stored values of `shape`, within the range of the stored type."""
        values = np.empty(samples.shape, self.dtype)
        for value, sample in zip(values, samples, strict=True):
            exact = self.low + self.step * sample.astype(np.float64)
            if self.dtype.kind in "iu":
                limits = np.iinfo(self.dtype)
                exact = np.clip(np.rint(exact), limits.min, limits.max)
            value[...] = exact
        return values.reshape(shape)


def pack(pictures: Sequence[bytes]) -> bytes:
    """The lengths of the pictures (u32 little-endian each), then the pictures."""
    return struct.pack(f"<{len(pictures)}I", *map(len, pictures)) + b"".join(pictures)


def unpack(data: bytes, count: int) -> list[bytes]:
    """The `count` pictures of `pack`; ValueError if the lengths do not add up."""
    if len(data) < 4 * count:
        raise ValueError(f"expected a table of {count} lengths, found {len(data)} bytes")
    ends = np.cumsum((4 * count, *struct.unpack_from(f"<{count}I", data)))
    if ends[-1] != len(data):
        raise ValueError(f"expected {ends[-1]} bytes by the table of lengths, found {len(data)}")
    return [data[start:end] for start, end in pairwise(ends)]


def decode_slices(
    decode: Callable[[bytes], NDArray[Any]], data: bytes, count: int
) -> NDArray[np.uint16]:
    """Samples [slices, j, i] of packed pictures."""
    return np.stack([decode(picture) for picture in unpack(data, count)]).astype(np.uint16)


def fit(samples: NDArray[np.uint16], bits: int) -> NDArray[Any]:
    """In the smallest type: imagecodecs' JPEG 2000 garbles samples of 8 bits and fewer in 16-bit arrays."""
    return samples.astype(np.uint8) if bits <= 8 else samples


def encode_jpeg2000(samples: NDArray[np.uint16], peak: int, psnr: float) -> bytes:
    """JPEG 2000 9/7, every slice aimed at `psnr` (dB) relative to `peak`, the volume's largest sample.

    OpenJPEG takes its target relative to 2^bits - 1: it is raised by the difference. Bare codestreams without
    the 85 bytes of a .jp2 file's boxes.
    """
    imagecodecs = require("imagecodecs")
    bits = peak.bit_length()
    level = psnr + 20 * math.log10((2**bits - 1) / peak)
    samples = fit(samples, bits)
    return pack(
        [
            imagecodecs.jpeg2k_encode(
                slice_, level, codecformat="j2k", bitspersample=bits, reversible=False
            )
            for slice_ in samples
        ]
    )


def decode_jpeg2000(data: bytes, count: int) -> NDArray[np.uint16]:
    """Samples [slices, j, i] of lossy or lossless JPEG 2000 slices."""
    return decode_slices(require("imagecodecs").jpeg2k_decode, data, count)


def jpeg2000_version() -> str:
    """Name and version of the library behind it."""
    return str(require("imagecodecs").jpeg2k_version())


_STEP = 4.5  # HTJ2K's quantiser step over the root mean square of the error, at usual rates


def encode_htj2k(samples: NDArray[np.uint16], peak: int, psnr: float) -> bytes:
    """HTJ2K 9/7 (OpenJPH), with the quantiser step at which about `psnr` (dB, relative to `peak`) is to be expected."""
    imagecodecs = require("imagecodecs")
    samples = fit(samples, peak.bit_length())
    step = _STEP * peak * 10 ** (-psnr / 20) / (np.iinfo(samples.dtype).max + 1)
    return pack([imagecodecs.htj2k_encode(slice_, step, reversible=False) for slice_ in samples])


def decode_htj2k(data: bytes, count: int) -> NDArray[np.uint16]:
    """Samples [slices, j, i]."""
    return decode_slices(require("imagecodecs").htj2k_decode, data, count)


def encode_jpegxl(samples: NDArray[np.uint16], peak: int, distance: float) -> bytes:
    """JPEG XL (libjxl effort 7), lossy."""
    encode = require("imagecodecs").jpegxl_encode
    return pack(
        [
            encode(slice_, distance=distance, effort=7, lossless=False, numthreads=1)
            for slice_ in samples
        ]
    )


def decode_jpegxl(data: bytes, count: int) -> NDArray[np.uint16]:
    """Samples [slices, j, i]."""
    return decode_slices(require("imagecodecs").jpegxl_decode, data, count)
