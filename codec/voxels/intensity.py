"""Stored values <-> integer codes from 0 on, and which volumes no lossy code can stand for."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.symbols import unzigzag, zigzag

CODES = 1 << 16  # of a lossy volume whose values do not fit as they are
EXACT_SPAN = 1 << 24  # a lossless coder takes integers of a smaller range
WIDEST = 1 << 62  # integers from here on are not mapped at all
FEW = 16  # integers with so few distinct values are labels or a mask, no scan
SCALES = (1e-140, 1e140)  # of codes, in stored units: beyond, float64 has no squares of errors
FLAT = 0.5  # of neighbours being equal in the foreground: scans reach 0.2, label maps exceed 0.6
_SAMPLE = 1 << 16
_PAIRS = 1 << 18  # of neighbours in a block are enough, from slices ...
_MAX_DISTANCE = 4  # ... no farther apart

_EXACT, _SCALED, _FLOAT = 0, 1, 2


@dataclass(frozen=True)
class Intensity:
    """value = minimum + code * scale, never beyond the range of the volume.

    minimum and maximum are integers where all values are (of whatever type); then scale is one too, and 1
    where codes are exact. Else all three are float64.
    """

    dtype: np.dtype[Any]  # native
    minimum: int | float
    maximum: int | float
    scale: int | float

    @classmethod
    def exact(cls, dtype: np.dtype[Any], minimum: int, maximum: int) -> Intensity:
        return cls(dtype, minimum, maximum, 1)

    @classmethod
    def for_lossy(
        cls, dtype: np.dtype[Any], minimum: int | float, maximum: int | float
    ) -> Intensity:
        """Codes below 2**16: the integers themselves if they fit, else evenly spaced ones over the range."""
        if isinstance(minimum, int) and isinstance(maximum, int):
            return cls.spread(dtype, minimum, maximum, CODES)
        return cls(dtype, minimum, maximum, (maximum - minimum) / (CODES - 1))

    @classmethod
    def spread(cls, dtype: np.dtype[Any], minimum: int, maximum: int, most: int) -> Intensity:
        """Integers as at most so many codes."""
        return cls(dtype, minimum, maximum, max(1, -(-(maximum - minimum) // (most - 1))))

    @property
    def peak(self) -> int:
        """The largest code."""
        if isinstance(self.scale, int):
            return -(-int(self.maximum - self.minimum) // self.scale)
        return CODES - 1

    @property
    def max_error(self) -> float:
        """Largest error of the map itself, in stored units, before rounding to the stored type."""
        return float(self.scale // 2) if isinstance(self.scale, int) else self.scale / 2

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values within the range -> codes of the same shape."""
        if not isinstance(self.minimum, int):
            above = values.astype(np.float64) - self.minimum
            return np.clip(np.rint(above / self.scale), 0, self.peak).astype(np.int32)
        above = values.astype(_roomy(values.dtype)) - self.minimum
        if self.scale > 1:
            above = (above + self.scale // 2) // self.scale
        return above.astype(np.int32, copy=False)

    def values(self, codes: NDArray[np.int32]) -> NDArray[Any]:
        """Codes -> stored values; codes outside 0 .. peak are taken for the nearest."""
        codes = np.clip(codes, 0, self.peak)
        if self.scale != 1 or self.dtype.itemsize > 2:
            codes = codes.astype(np.int64)
        values = codes * self.scale + self.minimum
        if self.scale != 1:
            values = np.minimum(values, self.maximum)
        return values.astype(self.dtype)

    def pack(self) -> bytes:
        if isinstance(self.minimum, int) and isinstance(self.maximum, int):
            kind = _EXACT if self.scale == 1 else _SCALED
            return (
                bytes((kind,))
                + pack_varint(zigzag(self.minimum))
                + pack_varint(self.maximum - self.minimum)
            )
        return struct.pack(_limits(self.dtype), _FLOAT, self.minimum, self.maximum)

    @classmethod
    def unpack(cls, fields: ByteReader, dtype: np.dtype[Any], most: int = CODES) -> Intensity:
        """FormatError if the map does not suit the type. most: codes of integers that do not fit as they are."""
        kind = fields.take(1)[0]
        if kind == _FLOAT and dtype.kind == "f":
            layout = _limits(dtype)
            _, low, high = struct.unpack(
                layout, bytes(1) + fields.take(struct.calcsize(layout) - 1)
            )
            if np.isfinite([low, high, high - low]).all() and low < high:
                return cls.for_lossy(dtype, low, high)
        elif kind in (_EXACT, _SCALED):
            minimum, span = unzigzag(fields.varint()), fields.varint()
            if _holds(dtype, minimum, minimum + span) and (kind == _SCALED or span < EXACT_SPAN):
                if kind == _EXACT:
                    return cls.exact(dtype, minimum, minimum + span)
                return cls.spread(dtype, minimum, minimum + span, most)
        raise FormatError(
            f"expected a map of intensities for {dtype} in HEAD, found kind {kind}: the file is damaged"
        )


class Statistics:
    """What is known of the stored values after every block was added."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.numeric = dtype.kind in "iufb" and dtype.itemsize <= 8
        self.finite = True
        self.integral = self.numeric  # all values so far are integers below 2**62
        self.negative_zero = False
        self.minimum: int | float = 0
        self.maximum: int | float = 0
        self.at_minimum = 0  # voxels that have the minimum
        self.voxels = 0
        self._distinct: set[float] | None = set()  # None: more than FEW
        self._pairs = self._equal = self._near = (
            0  # neighbours: all, of equal value, of nearly equal value
        )

    def add(self, block: NDArray[Any]) -> None:
        """Count in a block [n, h, w] of the volume."""
        if not (self.numeric and self.finite):
            return
        if block.dtype == bool:
            block = block.view(np.uint8)
        low, high = block.min().item(), block.max().item()
        if not np.isfinite([low, high]).all():
            self.finite = False
            return
        self._add_range(block, low, high)
        self.integral = self.integral and max(abs(low), abs(high)) < WIDEST and _is_integral(block)
        if self.integral:
            if block.dtype.kind == "f":
                self.negative_zero = self.negative_zero or bool(
                    (np.signbit(block) & (block == 0)).any()
                )
            self._add_neighbours(block)

    def _add_range(self, block: NDArray[Any], low: int | float, high: int | float) -> None:
        if self.voxels == 0 or low < self.minimum:
            self.minimum, self.at_minimum = low, 0
        self.maximum = high if self.voxels == 0 else max(self.maximum, high)
        if low == self.minimum:
            self.at_minimum += int(np.count_nonzero(block == low))
        self.voxels += block.size

    def _add_neighbours(self, block: NDArray[Any]) -> None:
        sample = block.reshape(-1)[:: -(-block.size // _SAMPLE)]
        found, counts = np.unique(sample, return_counts=True)
        if self._distinct is not None:
            if len(found) <= FEW:
                found = np.unique(block)
            self._distinct.update(found.tolist())
            if len(self._distinct) > FEW:
                self._distinct = None
        part = block[:: min(max(block.size // _PAIRS, 1), _MAX_DISTANCE)]
        left, right = part[..., :-1], part[..., 1:]
        counted = (left != found[counts.argmax()]) & (
            left != self.minimum
        )  # the background is flat in scans too
        self._pairs += int(np.count_nonzero(counted))
        self._equal += int(np.count_nonzero(counted & (left == right)))
        apart = np.abs(left.astype(_roomy(left.dtype)) - right)
        self._near += int(np.count_nonzero(counted & (apart > 0) & (apart <= 2)))

    def whole_range(self) -> tuple[int, int] | None:
        """Minimum and maximum as integers, if a lossless integer coder can take the volume bit by bit."""
        if not (self.numeric and self.finite and self.integral) or self.negative_zero:
            return None
        if self.maximum - self.minimum >= EXACT_SPAN:
            return None
        return int(self.minimum), int(self.maximum)

    def looks_like_labels(self) -> bool:
        if not self.integral:
            return False
        if self._distinct is not None:
            return True
        # Neighbours in a label map are equal or jump anywhere; in a scan of few grey levels they are close.
        return self._equal >= FLAT * self._pairs > 0 and self._near < 0.5 * (
            self._pairs - self._equal
        )


def lossless_reason(
    dtype: np.dtype[Any], statistics: Statistics, sigma: float, *, declared_labels: bool
) -> str | None:
    """Why this volume must not be coded with loss, or None. `sigma`: its noise, in stored units."""
    if dtype.names:
        return "it holds RGB colours"
    if dtype.kind == "c" or dtype.itemsize > 16:
        return "it holds complex values"
    if not statistics.numeric:
        return f"its type {dtype.name} has more than 64 bits"
    if not statistics.finite:
        return "it holds NaN or infinite values"
    if statistics.minimum == statistics.maximum:
        return "it is constant"
    if declared_labels or statistics.looks_like_labels():
        return "it is a label map"
    if dtype.kind != "f" and not statistics.integral:
        return "its range is too wide for 16 bits"
    intensity = Intensity.for_lossy(dtype, *lossy_range(statistics))
    if intensity.scale < SCALES[0]:
        return "its range is too narrow for floating point"
    if intensity.scale > SCALES[1] or (intensity.scale != 1 and 0 < sigma < intensity.scale):
        return "its range is too wide for 16 bits"
    return None


def lossy_range(statistics: Statistics) -> tuple[int, int] | tuple[float, float]:
    """Minimum and maximum: integers if all values are."""
    if statistics.integral:
        return int(statistics.minimum), int(statistics.maximum)
    return float(statistics.minimum), float(statistics.maximum)


def _is_integral(block: NDArray[Any]) -> bool:
    if block.dtype.kind != "f":
        return True
    sample = block.reshape(-1)[:1024]
    return bool((sample == np.rint(sample)).all()) and bool((block == np.rint(block)).all())


def _roomy(dtype: np.dtype[Any]) -> type[np.signedinteger[Any]]:
    """A signed type for differences of integers of this type below 2**62."""
    return np.int32 if dtype.kind in "iu" and dtype.itemsize <= 2 else np.int64


def _limits(dtype: np.dtype[Any]) -> str:
    """Layout of a map of real numbers: kind, minimum, maximum, no wider than the stored type."""
    return "<Bdd" if dtype.itemsize == 8 else "<Bff"


def _holds(dtype: np.dtype[Any], minimum: int, maximum: int) -> bool:
    if max(abs(minimum), abs(maximum)) >= WIDEST:
        return False
    return dtype.kind == "f" or (
        dtype.kind in "iu" and np.iinfo(dtype).min <= minimum <= maximum <= np.iinfo(dtype).max
    )
