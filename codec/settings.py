"""What an encoder may be asked for: quality, bound, target, effort; each choice once."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal

from mricodec.bitstream.errors import FormatError

Effort = Literal["fast", "default", "high"]
EFFORTS: tuple[Effort, ...] = ("fast", "default", "high")

KINDS = (
    "psnr",
    "bpv",
    "ratio",
)  # Their numbers in a stream are 1, 2, 3; they are only appended to.


@dataclass(frozen=True)
class Target:
    """What a file is to have: "psnr" (dB, peak = maximum - minimum), "bpv" (bits per voxel of the whole file) or
    "ratio" (bytes of the stored voxels over those of the file)."""

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"target: expected {', '.join(KINDS)}, found {self.kind}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"{self.kind}: expected a number above 0, found {self.value:g}")

    def __str__(self) -> str:
        return self.describe(self.value)

    def describe(self, value: float) -> str:
        """The target with another value."""
        return {
            "psnr": f"PSNR {value:.4g} dB",
            "bpv": f"{value:.4g} bits per voxel",
            "ratio": f"ratio {value:.4g}",
        }[self.kind]

    def pack(self) -> bytes:
        """Payload of a chunk: kind u8, value f32."""
        return struct.pack("<Bf", KINDS.index(self.kind) + 1, self.value)

    @classmethod
    def unpack(cls, payload: bytes) -> Target | None:
        """None for a kind of a later release. FormatError if it is damaged."""
        if len(payload) != 5:
            raise FormatError(
                f"expected 5 bytes for a target, found {len(payload)}: the file is damaged"
            )
        kind, value = struct.unpack("<Bf", payload)
        if not 1 <= kind <= len(KINDS):
            return None
        try:
            return cls(KINDS[kind - 1], float(f"{value:.6g}"))
        except ValueError as error:
            raise FormatError(f"{error}: the file is damaged") from error


def target_of(psnr: float | None, bpv: float | None, ratio: float | None) -> Target | None:
    """The one that is given; ValueError for more than one, or a value that can be no target."""
    given = [
        (kind, value)
        for kind, value in zip(KINDS, (psnr, bpv, ratio), strict=True)
        if value is not None
    ]
    if len(given) > 1:
        raise ValueError(
            f"expected one of {' and '.join(kind for kind, _ in given)}, found both: leave one out"
        )
    return Target(given[0][0], float(given[0][1])) if given else None


@dataclass(frozen=True)
class Bound:
    """A largest error: in stored units, or as a part of the noise of the scan."""

    value: float
    of_sigma: bool = False

    @classmethod
    def of(cls, given: float | str) -> Bound:
        """A number, or a string like "4" or "0.5sigma". ValueError for anything else, or one that is not positive."""
        text = str(given).strip().lower()
        of_sigma = text.endswith("sigma")
        try:
            bound = cls(float(text.removesuffix("sigma")), of_sigma)
        except ValueError:
            bound = cls(math.nan)
        if not 0 < bound.value < math.inf:
            raise ValueError(
                f"max_error: expected a number above 0, or one like 0.5sigma, found {given!r}"
            )
        return bound


@dataclass(frozen=True)
class EncodeSettings:
    """What a stream is to hold. quality None and no bound: all of it without loss."""

    quality: float | None = None  # of a lossy stream, or of the lossy layer
    bound: Bound | None = None
    lossless: bool = False
    layers: bool = False  # the coarser ones of the above are streams inside that decode alone
    effort: Effort = "default"
    target: Target | None = None  # of a lossy stream: PSNR or size
    preview: bool = True
    gzip: bool = True  # find out how to make a .nii.gz again
