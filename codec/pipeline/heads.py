"""HEAD.params of every coder, and the errors that a stream states."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from mricodec.bitstream.chunks import ERRORS
from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.header import Mode
from mricodec.codec.voxels.intensity import EXACT_SPAN, Intensity
from mricodec.codec.voxels.mappings import Exact, Grid, SampleMap, unpack_map
from mricodec.codec.voxels.quality import STEP_RANGE

ERRORS_BYTES = 4


@dataclass(frozen=True)
class Distortion:
    """How far a lossy stream is from the scan, in stored units."""

    sigma_hat: float  # estimated noise of the scan
    step: float  # quantiser step
    rmse: float
    max_error: float
    peak: float  # maximum - minimum of the scan

    @property
    def psnr(self) -> float:
        """dB, with the range of the scan as peak; infinite if no voxel differs."""
        ratio = self.peak / self.rmse if self.rmse > 0 else math.inf
        return 20 * math.log10(ratio) if ratio > 0 else -math.inf


@dataclass(frozen=True)
class PredictiveHead:
    """HEAD.params of the predictive coder: map | chain varint | if bounded: error varint, bound f64, sigma_hat f32.

    chain: a volume whose number is no multiple of it is coded beside the ones before; 0: none is.
    """

    codes: SampleMap
    chain: int = 0
    max_error: int = 0  # in codes
    bound: float = 0.0  # what was asked for, in stored units
    sigma: float = 0.0

    def pack(self, mode: Mode) -> bytes:
        head = self.codes.pack() + pack_varint(self.chain)
        if mode is Mode.BOUNDED:
            head += pack_varint(self.max_error) + struct.pack("<df", self.bound, self.sigma)
        return head

    @classmethod
    def unpack(cls, params: bytes, mode: Mode, dtype: np.dtype[Any]) -> PredictiveHead:
        fields = ByteReader(params, "HEAD")
        codes, chain = unpack_map(fields, dtype), fields.varint()
        if mode is Mode.LOSSLESS:
            head = cls(codes, chain)
        else:
            head = cls(codes, chain, fields.varint(), *struct.unpack("<df", fields.take(12)))
            sound = (
                0 < head.bound < math.inf
                and 0 <= head.sigma < math.inf
                and head.max_error < EXACT_SPAN
            )
            if mode is not Mode.BOUNDED or not sound:
                raise FormatError(
                    "expected a largest error and a noise in HEAD, found none: the file is damaged"
                )
        fields.end()
        return head

    @property
    def peak(self) -> float:
        """Maximum - minimum of the scan, or just beyond."""
        if isinstance(self.codes, Exact):
            return float(self.codes.intensity.maximum - self.codes.intensity.minimum)
        return self.codes.peak * self.codes.scale if isinstance(self.codes, Grid) else 0.0

    def pack_errors(self, rmse: float, max_error: float) -> bytes:
        """First bytes of the chunk ERRORS, from stored units: two f16, in units of the bound."""
        return _half(rmse / self.bound) + _half(max_error / self.bound)

    def fidelity(self, errors: bytes) -> Distortion:
        """Of a bounded stream, from the payload of the chunk ERRORS."""
        rmse, max_error = _errors(errors, self.bound)
        step = (2 * self.max_error + 1) * self.peak / self.codes.peak if self.codes.peak else 0.0
        return Distortion(self.sigma, step, rmse, max_error, self.peak)


@dataclass(frozen=True)
class LossyHead:
    """HEAD.params of a learned coder: step f32 (codes) | sigma_hat f16 (steps) | map of intensities."""

    step: float
    sigma: float  # in stored units
    intensity: Intensity

    def pack(self) -> bytes:
        scale = float(self.intensity.scale)
        return (
            struct.pack("<f", self.step)
            + _half(self.sigma / (self.step * scale))
            + self.intensity.pack()
        )

    @classmethod
    def unpack(cls, params: bytes, dtype: np.dtype[Any]) -> LossyHead:
        fields = ByteReader(params, "HEAD")
        step, sigma = struct.unpack("<fe", fields.take(6))
        least, largest = STEP_RANGE
        if not (least <= step <= largest and sigma >= 0):
            raise FormatError(
                f"expected a step from {least:g} to {largest:g} and a noise in HEAD, "
                f"found {step:g} and {sigma:g}: the file is damaged"
            )
        intensity = Intensity.unpack(fields, dtype)
        fields.end()
        return cls(step, sigma * step * float(intensity.scale), intensity)

    def pack_errors(self, rmse: float, max_error: float) -> bytes:
        """First bytes of the chunk ERRORS, from stored units: two f16, in steps."""
        unit = self.step * float(self.intensity.scale)
        return _half(rmse / unit) + _half(max_error / unit)

    def fidelity(self, errors: bytes) -> Distortion:
        """In stored units, from the payload of the chunk ERRORS."""
        unit = self.step * float(self.intensity.scale)
        peak = float(self.intensity.maximum - self.intensity.minimum)
        return Distortion(self.sigma, unit, *_errors(errors, unit), peak)


def _errors(payload: bytes, unit: float) -> tuple[float, float]:
    """Root mean square and largest error from the chunk ERRORS, in stored units."""
    if len(payload) < ERRORS_BYTES:
        raise FormatError(
            f"expected two errors in {ERRORS.decode()}, found {len(payload)} bytes: the file is damaged"
        )
    rmse, max_error = struct.unpack("<ee", payload[:ERRORS_BYTES])
    if not (rmse >= 0 and max_error >= 0):
        raise FormatError(
            f"expected two errors from 0 on in {ERRORS.decode()}, found {rmse:g} and {max_error:g}: "
            "the file is damaged"
        )
    return rmse * unit, max_error * unit


def _half(value: float) -> bytes:
    """float16, rounded up: an error is never understated. Infinite where float16 ends."""
    half = np.float16(min(value, float(np.finfo(np.float16).max)))
    if float(half) < value:
        half = np.nextafter(half, np.float16(np.inf))
    return struct.pack("<e", half)
