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
from mricodec.codec.voxels.mappings import AffineMap, FloatGridMap, SampleMap, unpack_map
from mricodec.codec.voxels.quality import STEP_RANGE

# Bytes of ERRORS before the checksums: root mean square and largest error, float16 each.
ERRORS_BYTES = 4


@dataclass(frozen=True)
class Distortion:
    """The distance of a lossy stream from the scan, in stored units.

    sigma_hat: estimated noise of the scan. step: of the quantiser. peak: maximum - minimum of the
    scan.
    """

    sigma_hat: float
    step: float
    rmse: float
    max_error: float
    peak: float

    @property
    def psnr(self) -> float:
        """dB, with the range of the scan as peak; infinite if no voxel differs."""
        ratio = self.peak / self.rmse if self.rmse > 0 else math.inf
        return 20 * math.log10(ratio) if ratio > 0 else -math.inf


@dataclass(frozen=True)
class PredictiveHead:
    """HEAD.params of the predictive coder.

    map | chain varint | if bounded: max_error varint, bound f64, sigma f32

    chain: volumes of a chain, of which each but the first has the ones before as references; 0: no
    volume has references. max_error: in samples. bound: as asked for, in stored units. sigma: noise
    of the scan in stored units.
    """

    sample_map: SampleMap
    chain: int = 0
    max_error: int = 0
    bound: float = 0.0
    sigma: float = 0.0

    def pack(self, mode: Mode) -> bytes:
        """The bytes of HEAD.params."""
        head = self.sample_map.pack() + pack_varint(self.chain)
        if mode is Mode.BOUNDED:
            head += pack_varint(self.max_error) + struct.pack("<df", self.bound, self.sigma)
        return head

    @classmethod
    def unpack(cls, params: bytes, mode: Mode, dtype: np.dtype[Any]) -> PredictiveHead:
        """From HEAD.params of a stream of this type. FormatError if they are damaged."""
        fields = ByteReader(params, "HEAD")
        sample_map, chain = unpack_map(fields, dtype), fields.varint()
        if mode is Mode.LOSSLESS:
            head = cls(sample_map, chain)
        else:
            max_error = fields.varint()
            head = cls(sample_map, chain, max_error, *struct.unpack("<df", fields.take(12)))
            sound = 0 < head.bound < math.inf and 0 <= head.sigma < math.inf
            if mode is not Mode.BOUNDED or not sound or head.max_error >= EXACT_SPAN:
                raise FormatError(
                    "expected a largest error and a noise in HEAD, found none: the file is damaged"
                )
        fields.end()
        return head

    @property
    def peak(self) -> float:
        """Maximum - minimum of the scan, or just beyond."""
        if isinstance(self.sample_map, AffineMap):
            intensity = self.sample_map.intensity
            return float(intensity.maximum - intensity.minimum)
        if isinstance(self.sample_map, FloatGridMap):
            return self.sample_map.peak * self.sample_map.scale
        return 0.0

    def pack_errors(self, rmse: float, max_error: float) -> bytes:
        """First bytes of the chunk ERRORS, from stored units: two f16, in units of the bound."""
        return _half(rmse / self.bound) + _half(max_error / self.bound)

    def fidelity(self, errors: bytes) -> Distortion:
        """Of a bounded stream, from the payload of the chunk ERRORS. FormatError."""
        rmse, max_error = _errors(errors, self.bound)
        samples = self.sample_map.peak
        step = (2 * self.max_error + 1) * self.peak / samples if samples else 0.0
        return Distortion(self.sigma, step, rmse, max_error, self.peak)


@dataclass(frozen=True)
class LossyHead:
    """HEAD.params of a learned coder: step f32 (samples) | sigma f16 (steps) | map of intensities.

    step: in samples. sigma: noise of the scan in stored units.
    """

    step: float
    sigma: float
    intensity: Intensity

    @property
    def stored_step(self) -> float:
        """The quantiser's step in stored units."""
        return self.step * float(self.intensity.scale)

    def pack(self) -> bytes:
        """The bytes of HEAD.params."""
        sigma = _half(self.sigma / self.stored_step)
        return struct.pack("<f", self.step) + sigma + self.intensity.pack()

    @classmethod
    def unpack(cls, params: bytes, dtype: np.dtype[Any]) -> LossyHead:
        """From HEAD.params of a stream of this type. FormatError if they are damaged."""
        fields = ByteReader(params, "HEAD")
        step, sigma = struct.unpack("<fe", fields.take(6))
        finest, coarsest = STEP_RANGE
        if not (finest <= step <= coarsest and sigma >= 0):
            raise FormatError(
                f"expected a step from {finest:g} to {coarsest:g} and a noise in HEAD, "
                f"found {step:g} and {sigma:g}: the file is damaged"
            )
        intensity = Intensity.unpack(fields, dtype)
        fields.end()
        return cls(step, sigma * step * float(intensity.scale), intensity)

    def pack_errors(self, rmse: float, max_error: float) -> bytes:
        """First bytes of the chunk ERRORS, from stored units: two f16, in steps."""
        return _half(rmse / self.stored_step) + _half(max_error / self.stored_step)

    def fidelity(self, errors: bytes) -> Distortion:
        """In stored units, from the payload of the chunk ERRORS. FormatError."""
        peak = float(self.intensity.maximum - self.intensity.minimum)
        step = self.stored_step
        return Distortion(self.sigma, step, *_errors(errors, step), peak)


def _errors(payload: bytes, unit: float) -> tuple[float, float]:
    """Root mean square and largest error from the chunk ERRORS, in stored units."""
    if len(payload) < ERRORS_BYTES:
        raise FormatError(
            f"expected two errors in {ERRORS.decode()}, found {len(payload)} bytes: "
            "the file is damaged"
        )
    rmse, max_error = struct.unpack("<ee", payload[:ERRORS_BYTES])
    if not (rmse >= 0 and max_error >= 0):
        raise FormatError(
            f"expected two errors from 0 on in {ERRORS.decode()}, "
            f"found {rmse:g} and {max_error:g}: the file is damaged"
        )
    return rmse * unit, max_error * unit


def _half(value: float) -> bytes:
    """float16, rounded up, so that no error is understated. Infinite where float16 ends."""
    half = np.float16(min(value, float(np.finfo(np.float16).max)))
    if float(half) < value:
        half = np.nextafter(half, np.float16(np.inf))
    return struct.pack("<e", half)
