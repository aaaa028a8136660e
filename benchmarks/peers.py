"""Lossless peers that run through imagecodecs (extra `bench`), each slice a picture of its own; others come as CSV.

Bare codestreams, and 4 bytes a slice for their lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.codec.evaluation import still as peers
from mricodec.codec.evaluation.codecs import StillPicture
from mricodec.codec.evaluation.rate_distortion import Source


class LosslessPicture(StillPicture):
    """A lossless codec of pictures; it has no parameter."""

    def __init__(
        self,
        name: str,
        version: str,
        encode: Callable[[NDArray[np.uint16], int], list[bytes]],  # (samples [slices, j, i], bits)
        decode: Callable[[bytes], NDArray[Any]],
    ) -> None:
        super().__init__(
            name,
            version,
            lambda count, psnrs: [0.0],
            lambda samples, peak, _: peers.pack(encode(samples, peak.bit_length())),
            lambda data, count: peers.decode_slices(decode, data, count),
        )

    def encode(self, source: Source, parameter: float, path: Path) -> None:
        if peers.Samples.of(source.voxels, source.limits).step != 1:
            raise ValueError(
                f"{self.name} takes integers that span up to 16 bits, not these {source.voxels.dtype}"
            )
        super().encode(source, parameter, path)


def _jpeg2000(samples: NDArray[np.uint16], bits: int) -> list[bytes]:
    """5/3, reversible."""
    encode = peers.require("imagecodecs").jpeg2k_encode
    pictures = peers.fit(samples, bits)
    return [
        encode(picture, codecformat="j2k", bitspersample=bits, reversible=True)
        for picture in pictures
    ]


def _jpegls(samples: NDArray[np.uint16], bits: int) -> list[bytes]:
    encode = peers.require("imagecodecs").jpegls_encode
    return [encode(picture) for picture in peers.fit(samples, bits)]


def _jpegxl(samples: NDArray[np.uint16], bits: int) -> list[bytes]:
    """libjxl effort 7, as 16-bit pictures; told the true bits it saves another 0.3 to 1.7 %."""
    encode = peers.require("imagecodecs").jpegxl_encode
    return [encode(picture, effort=7, lossless=True, numthreads=1) for picture in samples]


def lossless() -> Sequence[LosslessPicture]:
    """JPEG 2000 5/3, JPEG-LS, JPEG XL. MissingExtra without imagecodecs."""
    imagecodecs = peers.require("imagecodecs")
    return [
        LosslessPicture(
            "jpeg2000", imagecodecs.jpeg2k_version(), _jpeg2000, imagecodecs.jpeg2k_decode
        ),
        LosslessPicture("jpegls", imagecodecs.jpegls_version(), _jpegls, imagecodecs.jpegls_decode),
        LosslessPicture("jxl-e7", imagecodecs.jpegxl_version(), _jpegxl, imagecodecs.jpegxl_decode),
    ]
