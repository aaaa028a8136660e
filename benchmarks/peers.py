"""Peers that run through imagecodecs (extra `bench`), each slice a picture of its own; others come as CSV.

Bare codestreams, and 4 bytes a slice for their lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec import peers
from mricodec.codec.output import replacing
from mricodec.codec.rate_distortion import Jpeg2000, Source


def _jpeg2000(samples: NDArray[np.uint16], bits: int) -> list[bytes]:
    """5/3, reversible."""
    encode = peers.require("imagecodecs").jpeg2k_encode
    pictures = peers.fit(samples, bits)
    return [encode(picture, codecformat="j2k", bitspersample=bits, reversible=True) for picture in pictures]


def _jpegls(samples: NDArray[np.uint16], bits: int) -> list[bytes]:
    encode = peers.require("imagecodecs").jpegls_encode
    return [encode(picture) for picture in peers.fit(samples, bits)]


def _jpegxl(samples: NDArray[np.uint16], bits: int) -> list[bytes]:
    """libjxl effort 7, as 16-bit pictures; told the true bits it saves another 0.3 to 1.7 %."""
    encode = peers.require("imagecodecs").jpegxl_encode
    return [encode(picture, effort=7, lossless=True, numthreads=1) for picture in samples]


@dataclass(frozen=True)
class LosslessPeer:
    """A `Contender` without parameter."""

    name: str
    version: str
    encode_slices: Callable[[NDArray[np.uint16], int], list[bytes]]  # (samples, bits)
    decode_slice: Callable[[bytes], NDArray[Any]]
    suffix: str = ".slices"

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        samples = self._samples(source)
        data = peers.pack(self.encode_slices(samples.from_values(source.voxels), samples.bits))
        with replacing(path) as file:
            file.write(data)

    def decode(self, source: Source, path: Path) -> NDArray[Any]:
        shape = source.voxels.shape
        pictures = peers.decode_slices(self.decode_slice, path.read_bytes(), int(np.prod(shape[:-2])))
        return self._samples(source).to_values(pictures, shape)

    def _samples(self, source: Source) -> peers.Samples:
        samples = peers.Samples.of(source.voxels, source.limits)
        if samples.step != 1:
            raise ValueError(
                f"{self.name} takes integers that span up to 16 bits, not these {source.voxels.dtype}"
            )
        return samples


def lossy() -> list[Jpeg2000]:
    """JPEG 2000 9/7; parameter: the PSNR aimed at."""
    return [Jpeg2000()]


def lossless() -> list[LosslessPeer]:
    """JPEG 2000 5/3, JPEG-LS, JPEG XL. MissingExtra without imagecodecs."""
    imagecodecs = peers.require("imagecodecs")
    return [
        LosslessPeer("jpeg2000", imagecodecs.jpeg2k_version(), _jpeg2000, imagecodecs.jpeg2k_decode),
        LosslessPeer("jpegls", imagecodecs.jpegls_version(), _jpegls, imagecodecs.jpegls_decode),
        LosslessPeer("jxl-e7", imagecodecs.jpegxl_version(), _jpegxl, imagecodecs.jpegxl_decode),
    ]
