"""What an encoder can be asked for: each choice once, its default with a reason, each rule once."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal, TypedDict

from mricodec.bitstream.errors import FormatError

Effort = Literal["fast", "default", "high"]
EFFORTS: tuple[Effort, ...] = ("fast", "default", "high")
# The error stays below the scan's own noise at this quality.
DEFAULT_QUALITY = 50.0
# Quality of a lossy layer under a finer one: a better one costs more than it saves.
LAYER_QUALITY = 25.0
# Kinds of targets; their numbers in a stream are 1, 2, 3. They are only appended to.
TARGET_KINDS = ("psnr", "bpv", "ratio")


@dataclass(frozen=True)
class Target:
    """The distortion or size that a file is to have.

    kind: "psnr" (dB, peak = maximum - minimum), "bpv" (bits per voxel of the whole file) or "ratio"
    (bytes of the stored voxels over those of the file).
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in TARGET_KINDS:
            raise ValueError(f"target: expected {', '.join(TARGET_KINDS)}, found {self.kind}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"{self.kind}: expected a number above 0, found {self.value:g}")

    @classmethod
    def of(cls, psnr: float | None, bpv: float | None, ratio: float | None) -> Target | None:
        """The one that is not None; ValueError for more than one, or a value out of range."""
        values = zip(TARGET_KINDS, (psnr, bpv, ratio), strict=True)
        chosen = [(kind, value) for kind, value in values if value is not None]
        if len(chosen) > 1:
            kinds = " and ".join(kind for kind, _ in chosen)
            raise ValueError(f"expected one of {kinds}, found both: leave one out")
        return cls(chosen[0][0], float(chosen[0][1])) if chosen else None

    def __str__(self) -> str:
        return self.describe(self.value)

    def describe(self, value: float) -> str:
        """The target with another value, in words."""
        form = {
            "psnr": f"PSNR {value:.4g} dB",
            "bpv": f"{value:.4g} bits per voxel",
            "ratio": f"ratio {value:.4g}",
        }
        return form[self.kind]

    def pack(self) -> bytes:
        """Payload of the chunk gOAL: kind u8, value f32."""
        return struct.pack("<Bf", TARGET_KINDS.index(self.kind) + 1, self.value)

    @classmethod
    def unpack(cls, payload: bytes) -> Target | None:
        """None for a kind of a later release. FormatError if the payload is damaged."""
        if len(payload) != 5:
            raise FormatError(
                f"expected 5 bytes for a target, found {len(payload)}: the file is damaged"
            )
        kind, value = struct.unpack("<Bf", payload)
        if not 1 <= kind <= len(TARGET_KINDS):
            return None
        try:
            return cls(TARGET_KINDS[kind - 1], float(f"{value:.6g}"))
        except ValueError as error:
            raise FormatError(f"{error}: the file is damaged") from error


@dataclass(frozen=True)
class Bound:
    """A largest error of every voxel: in stored units, or as a part of the noise of the scan."""

    value: float
    of_sigma: bool = False

    @classmethod
    def of(cls, max_error: float | str) -> Bound:
        """From a number, or a text like "4" or "0.5sigma". ValueError unless it is positive."""
        text = str(max_error).strip().lower()
        of_sigma = text.endswith("sigma")
        try:
            bound = cls(float(text.removesuffix("sigma")), of_sigma)
        except ValueError:
            bound = cls(math.nan)
        if not 0 < bound.value < math.inf:
            raise ValueError(
                f"max_error: expected a number above 0, or one like 0.5sigma, found {max_error!r}"
            )
        return bound


class EncodeOptions(TypedDict, total=False):
    """The options of `codec.Encoder`, which has their meaning and defaults."""

    quality: float | None
    psnr: float | None
    bpv: float | None
    ratio: float | None
    lossless: bool
    max_error: float | str | None
    layers: bool
    effort: Effort
    gzip: bool


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """What a stream is to hold. Without quality and bound: all of it without loss.

    quality: of a lossy stream, or of the lossy layer.
    bound: of a bounded stream, or of the bounded layer.
    layers: the coarser ones of these fidelities are streams inside that decode alone.
    target: PSNR or size of a lossy stream; the quantiser is searched for it, whatever the quality.
    preview: put a reduced scan into a lossless stream; streams inside others have none.
    gzip: look for the recipe of the .nii.gz, which takes as long as to compress it.
    """

    quality: float | None = None
    bound: Bound | None = None
    lossless: bool = False
    layers: bool = False
    effort: Effort = "default"
    target: Target | None = None
    preview: bool = True
    gzip: bool = True

    @classmethod
    def of(cls, options: EncodeOptions, *, model: object | None = None) -> EncodeSettings:
        """ValueError for options that exclude one another, TypeError for unknown ones."""
        unknown = options.keys() - EncodeOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"unexpected option {', '.join(sorted(unknown))}")
        quality, max_error = options.get("quality"), options.get("max_error")
        lossless, layers = options.get("lossless", False), options.get("layers", False)
        effort = options.get("effort", "default")
        target = Target.of(options.get("psnr"), options.get("bpv"), options.get("ratio"))
        finer = "lossless" if lossless else "max_error" if max_error is not None else None
        _check_exclusions(options, target, finer, model)
        if effort not in EFFORTS:
            raise ValueError(f"effort: expected {', '.join(EFFORTS)}, found {effort!r}")
        if quality is None:
            quality = LAYER_QUALITY if layers else DEFAULT_QUALITY
        check_quality(quality)
        return cls(
            quality=float(quality) if layers or finer is None else None,
            bound=None if max_error is None else Bound.of(max_error),
            lossless=lossless,
            layers=layers,
            effort=effort,
            target=target,
            gzip=options.get("gzip", True),
        )


def _check_exclusions(
    options: EncodeOptions, target: Target | None, finer: str | None, model: object | None
) -> None:
    """finer: the option that asks for no loss or a bound. ValueError for a conflict."""
    quality, layers = options.get("quality"), options.get("layers", False)
    if target is not None and (finer or quality is not None):
        raise ValueError(
            f"expected {finer or 'quality'} or {target.kind}, found both: leave one out"
        )
    if layers and finer is None:
        raise ValueError("layers: expected lossless or max_error with it, found neither")
    if finer and not layers and (quality is not None or model is not None):
        other = "quality" if quality is not None else "model"
        raise ValueError(
            f"expected {finer} or {other}, found both: leave one out, or ask for layers"
        )
    if options.get("lossless") and options.get("max_error") is not None and not layers:
        raise ValueError(
            "expected lossless or max_error, found both: leave one out, or ask for layers"
        )


def check_quality(quality: float) -> None:
    """ValueError for a quality out of range."""
    if not 0 <= quality <= 100:
        raise ValueError(f"quality: expected a number from 0 to 100, found {quality:g}")
