"""JPEG 2000, HTJ2K, JPEG-LS and JPEG XL as baselines: every slice of a volume is a picture.

A volume becomes 16-bit samples relative to its smallest value, each slice [j, i] a picture of its
own; the codestreams follow the table of their lengths, 4 bytes a slice. Shape, smallest value and
step are not in the bytes: the baseline is not charged for them. Needs imagecodecs (extra `bench`),
imported when called.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.atomic import replacing
from mricodec.codec.voxels.metrics import Range
from mricodec.models.extras import require

from .rate_distortion import Codec, Source

# Largest sample of a picture.
MAX_SAMPLE = 65535
# Lowest and highest PSNR (dB) that these codecs are asked for; below, the 130 bytes of header of a
# JPEG 2000 slice are most of the file.
TARGET_PSNRS = (25.0, 58.0)
# Smallest spread of PSNRs (dB) that counts as a curve.
MIN_PSNR_SPREAD = 1.0
# Smallest and largest distance of JPEG XL.
JXL_DISTANCES = (0.03, 20.0)
# Quantiser step of HTJ2K over the root mean square of its error, at usual rates.
HTJ2K_STEP_PER_RMSE = 4.5


def _imagecodecs() -> Any:
    return require("imagecodecs", "bench", "JPEG codecs")


@dataclass(frozen=True)
class Samples:
    """How stored values map to samples 0 ... `peak`: value = low + step * sample."""

    # Smallest value of the whole volume, stored units.
    low: float
    # Stored units per sample; 1 unless values are no integers or span more than 16 bits.
    step: float
    # Sample of the largest value.
    peak: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, voxels: NDArray[Any], limits: Range) -> Samples:
        """For the part `voxels` of a volume with these (smallest, largest) stored values.

        ValueError for values that are not real and finite, or all equal.
        """
        low, high = limits
        if voxels.dtype.kind not in "iuf":
            raise ValueError(f"expected real numbers for samples of pictures, found {voxels.dtype}")
        if not (high > low and math.isfinite(high - low)):
            raise ValueError(
                "expected finite values that differ for samples of pictures, "
                f"found {low:g} ... {high:g}"
            )
        integers = voxels.dtype.kind in "iu" or (
            low % 1 == 0 and all(bool((s % 1 == 0).all()) for s in voxels)
        )
        if integers and high - low <= MAX_SAMPLE:
            return cls(low, 1.0, int(high - low), voxels.dtype)
        return cls(low, (high - low) / MAX_SAMPLE, MAX_SAMPLE, voxels.dtype)

    def from_values(self, voxels: NDArray[Any]) -> NDArray[np.uint16]:
        """Stored values [..., j, i] -> samples [slices, j, i]."""
        slices = voxels.reshape(-1, *((1, 1, *voxels.shape)[-2:]))
        samples = np.empty(slices.shape, np.uint16)
        for sample, values in zip(samples, slices, strict=True):
            sample[...] = np.rint((values.astype(np.float64) - self.low) / self.step)
        return samples

    def to_values(self, samples: NDArray[np.uint16], shape: tuple[int, ...]) -> NDArray[Any]:
        """Samples [slices, j, i] -> stored values of `shape`, clipped to the stored type."""
        values = np.empty(samples.shape, self.dtype)
        for value, sample in zip(values, samples, strict=True):
            exact = self.low + self.step * sample.astype(np.float64)
            if self.dtype.kind in "iu":
                limits = np.iinfo(self.dtype)
                exact = np.clip(np.rint(exact), limits.min, limits.max)
            value[...] = exact
        return values.reshape(shape)


def pack(pictures: Sequence[bytes]) -> bytes:
    """The lengths of the codestreams (u32 little-endian each), then the codestreams."""
    return struct.pack(f"<{len(pictures)}I", *map(len, pictures)) + b"".join(pictures)


def unpack(data: bytes, count: int) -> list[bytes]:
    """The `count` codestreams of `pack`; ValueError if the lengths do not add up."""
    if len(data) < 4 * count:
        raise ValueError(f"expected a table of {count} lengths, found {len(data)} bytes")
    ends = np.cumsum((4 * count, *struct.unpack_from(f"<{count}I", data)))
    if ends[-1] != len(data):
        raise ValueError(f"expected {ends[-1]} bytes by the table of lengths, found {len(data)}")
    return [data[start:end] for start, end in pairwise(ends)]


def fit(samples: NDArray[np.uint16], bits: int) -> NDArray[Any]:
    """In the smallest type: imagecodecs' JPEG 2000 garbles up to 8 bits in 16-bit arrays."""
    return samples.astype(np.uint8) if bits <= 8 else samples


# (samples [slices, j, i], largest sample of the volume, parameter) -> codestream of each slice.
Encode = Callable[[NDArray[np.uint16], int, float], list[bytes]]
# Codestream -> samples [j, i].
Decode = Callable[[bytes], NDArray[Any]]


@dataclass(frozen=True)
class StillPicture(Codec):
    """A codec of pictures, slice by slice (k)."""

    name: str
    version: str
    # The parameters of a curve, as in `Codec.parameters`.
    spread: Callable[[int, Sequence[float]], list[float]]
    encode_slices: Encode
    decode_slice: Decode
    # Whether it refuses volumes whose samples are not exactly the stored values.
    lossless: bool = False
    suffix: str = ".slices"

    def parameters(self, count: int, psnrs: Sequence[float]) -> list[float]:
        return self.spread(count, psnrs)

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        samples = Samples.of(source.voxels, source.limits)
        if self.lossless and samples.step != 1:
            raise ValueError(
                f"{self.name}: expected integers that span at most 16 bits, "
                f"found {source.voxels.dtype} from {source.limits[0]:g} to {source.limits[1]:g}"
            )
        pictures = self.encode_slices(samples.from_values(source.voxels), samples.peak, parameter)
        with replacing(path) as file:
            file.write(pack(pictures))

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        samples = Samples.of(source.voxels, source.limits)
        count = math.prod(source.voxels.shape[:-2])
        slices = [self.decode_slice(data) for data in unpack(path.read_bytes(), count)]
        return samples.to_values(np.stack(slices).astype(np.uint16), source.voxels.shape)


def spread_psnrs(count: int, psnrs: Sequence[float]) -> list[float]:
    """Target PSNRs (dB): those of the other curves, within TARGET_PSNRS."""
    usual = [
        min(max(psnr, TARGET_PSNRS[0]), TARGET_PSNRS[1]) for psnr in psnrs if math.isfinite(psnr)
    ]
    low, high = min(usual, default=0.0), max(usual, default=0.0)
    if high - low < MIN_PSNR_SPREAD:
        low, high = TARGET_PSNRS
    return [round(float(target), 1) for target in np.linspace(low, high, count)]


def _spread_distances(count: int, psnrs: Sequence[float]) -> list[float]:
    return [round(float(distance), 3) for distance in np.geomspace(*JXL_DISTANCES, count)]


def _no_parameter(count: int, psnrs: Sequence[float]) -> list[float]:
    return [0.0]


def jpeg2000() -> StillPicture:
    """JPEG 2000 9/7; parameter: target PSNR of every slice. MissingExtra without imagecodecs."""
    imagecodecs = _imagecodecs()
    version = str(imagecodecs.jpeg2k_version())
    return StillPicture(
        "jpeg2000", version, spread_psnrs, encode_jpeg2000, imagecodecs.jpeg2k_decode
    )


def encode_jpeg2000(samples: NDArray[np.uint16], peak: int, psnr: float) -> list[bytes]:
    """JPEG 2000 9/7, every slice at `psnr` (dB) relative to `peak`, the volume's largest sample.

    OpenJPEG takes its target relative to 2^bits - 1, so it is raised by the difference. Bare
    codestreams without the 85 bytes of a .jp2 file's boxes.
    """
    encode = _imagecodecs().jpeg2k_encode
    bits = peak.bit_length()
    level = psnr + 20 * math.log10((2**bits - 1) / peak)
    return [
        encode(picture, level, codecformat="j2k", bitspersample=bits, reversible=False)
        for picture in fit(samples, bits)
    ]


def htj2k() -> StillPicture:
    """High-throughput JPEG 2000 9/7 (OpenJPH); parameter: the PSNR at which its step aims."""
    imagecodecs = _imagecodecs()
    version = str(imagecodecs.htj2k_version())
    return StillPicture("htj2k", version, spread_psnrs, _encode_htj2k, imagecodecs.htj2k_decode)


def _encode_htj2k(samples: NDArray[np.uint16], peak: int, psnr: float) -> list[bytes]:
    """The quantiser step is the one at which about `psnr` (dB) is to be expected."""
    encode = _imagecodecs().htj2k_encode
    pictures = fit(samples, peak.bit_length())
    rmse = peak * 10 ** (-psnr / 20)
    step = HTJ2K_STEP_PER_RMSE * rmse / (np.iinfo(pictures.dtype).max + 1)
    return [encode(picture, step, reversible=False) for picture in pictures]


def jpegxl() -> StillPicture:
    """JPEG XL, libjxl effort 7; parameter: distance."""
    imagecodecs = _imagecodecs()
    version = str(imagecodecs.jpegxl_version())
    return StillPicture(
        "jxl-e7", version, _spread_distances, _encode_jpegxl, imagecodecs.jpegxl_decode
    )


def _encode_jpegxl(samples: NDArray[np.uint16], peak: int, distance: float) -> list[bytes]:
    encode = _imagecodecs().jpegxl_encode
    return [
        encode(picture, distance=distance, effort=7, lossless=False, numthreads=1)
        for picture in samples
    ]


def lossless() -> list[StillPicture]:
    """JPEG 2000 5/3, JPEG-LS and JPEG XL without loss. MissingExtra without imagecodecs."""
    imagecodecs = _imagecodecs()
    codecs: list[tuple[str, str, Encode, Decode]] = [
        ("jpeg2000", imagecodecs.jpeg2k_version(), _lossless_jpeg2000, imagecodecs.jpeg2k_decode),
        ("jpegls", imagecodecs.jpegls_version(), _lossless_jpegls, imagecodecs.jpegls_decode),
        ("jxl-e7", imagecodecs.jpegxl_version(), _lossless_jpegxl, imagecodecs.jpegxl_decode),
    ]
    return [
        StillPicture(name, str(version), _no_parameter, encode, decode, lossless=True)
        for name, version, encode, decode in codecs
    ]


def _lossless_jpeg2000(samples: NDArray[np.uint16], peak: int, _: float) -> list[bytes]:
    encode, bits = _imagecodecs().jpeg2k_encode, peak.bit_length()
    return [
        encode(picture, codecformat="j2k", bitspersample=bits, reversible=True)
        for picture in fit(samples, bits)
    ]


def _lossless_jpegls(samples: NDArray[np.uint16], peak: int, _: float) -> list[bytes]:
    encode = _imagecodecs().jpegls_encode
    return [encode(picture) for picture in fit(samples, peak.bit_length())]


def _lossless_jpegxl(samples: NDArray[np.uint16], peak: int, _: float) -> list[bytes]:
    """As 16-bit pictures; with the true number of bits it saves another 0.3 to 1.7 %."""
    encode = _imagecodecs().jpegxl_encode
    return [encode(picture, effort=7, lossless=True, numthreads=1) for picture in samples]
