"""Affine maps of stored values to integer samples, and which scans must be coded without loss."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.symbols import unzigzag, zigzag

# Samples of a lossy scan lie below this; wider ranges are quantised to it.
LOSSY_SAMPLES = 1 << 16
# Samples of the predictive coder lie below this.
EXACT_SPAN = 1 << 24
# Integers of this magnitude or above are not mapped.
MAX_INTEGER = 1 << 62
# Integers with at most this many distinct values are labels or a mask, not a scan.
MAX_LABELS = 16
# Scales, in stored units per sample, between which squared errors are normal float64 numbers.
SCALE_RANGE = (1e-140, 1e140)
# Share of equal neighbours in the foreground of label maps: scans reach 0.2, label maps exceed 0.6.
LABEL_FLATNESS = 0.5
# Voxels of a block that are examined for its common values.
_EXAMINED_VOXELS = 1 << 16
# Pairs of neighbours that are enough to tell labels from scans.
_ENOUGH_PAIRS = 1 << 18
# The largest distance of the slices from which these pairs are drawn.
_MAX_SLICE_DISTANCE = 4

# Kinds of maps in a stream.
_EXACT, _SCALED, _FLOAT = 0, 1, 2


@dataclass(frozen=True)
class Intensity:
    """An affine map: value = minimum + sample * scale, at most maximum.

    dtype: the stored type in native byte order. minimum, maximum and scale are integers if all
    values are, of whatever type, and scale is 1 if samples are exact; else all three are float64.
    """

    dtype: np.dtype[Any]
    minimum: int | float
    maximum: int | float
    scale: int | float

    @classmethod
    def exact(cls, dtype: np.dtype[Any], minimum: int, maximum: int) -> Intensity:
        """The map of integers by their distance from the minimum."""
        return cls(dtype, minimum, maximum, 1)

    @classmethod
    def for_lossy(
        cls, dtype: np.dtype[Any], minimum: int | float, maximum: int | float
    ) -> Intensity:
        """A map to samples below 2**16: exact if the integers fit, else quantised evenly."""
        if isinstance(minimum, int) and isinstance(maximum, int):
            return cls.quantised(dtype, minimum, maximum, LOSSY_SAMPLES)
        return cls(dtype, minimum, maximum, (maximum - minimum) / (LOSSY_SAMPLES - 1))

    @classmethod
    def quantised(cls, dtype: np.dtype[Any], minimum: int, maximum: int, limit: int) -> Intensity:
        """A map of integers to samples below `limit`, with the smallest scale that allows it."""
        return cls(dtype, minimum, maximum, max(1, -(-(maximum - minimum) // (limit - 1))))

    @property
    def peak(self) -> int:
        """The largest sample."""
        if isinstance(self.scale, int):
            return -(-int(self.maximum - self.minimum) // self.scale)
        return LOSSY_SAMPLES - 1

    @property
    def max_error(self) -> float:
        """Largest error of the map, in stored units, before rounding to the stored type."""
        return float(self.scale // 2) if isinstance(self.scale, int) else self.scale / 2

    def samples(
        self, values: NDArray[Any], out: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """Stored values within the range -> samples of the same shape, in `out` if it is given."""
        samples = np.empty(values.shape, np.int32) if out is None else out
        for to, part in _slices(samples, values):
            if not isinstance(self.minimum, int):
                above = part.astype(np.float64) - self.minimum
                to[...] = np.clip(np.rint(above / self.scale), 0, self.peak)
                continue
            above = part.astype(_difference_type(part.dtype)) - self.minimum
            to[...] = (above + self.scale // 2) // self.scale if self.scale > 1 else above
        return samples

    def values(self, samples: NDArray[np.int32], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Samples -> stored values of the same shape, in `out` if it is given.

        Samples are clipped to 0 .. peak.
        """
        values = np.empty(samples.shape, self.dtype) if out is None else out
        for to, part in _slices(values, samples):
            clipped = np.clip(part, 0, self.peak)
            if self.scale != 1 or self.dtype.itemsize > 2:
                clipped = clipped.astype(np.int64)
            above = clipped * self.scale + self.minimum
            to[...] = above if self.scale == 1 else np.minimum(above, self.maximum)
        return values

    def pack(self) -> bytes:
        """The bytes of the map in HEAD.params."""
        if isinstance(self.minimum, int) and isinstance(self.maximum, int):
            kind = _EXACT if self.scale == 1 else _SCALED
            return (
                bytes((kind,))
                + pack_varint(zigzag(self.minimum))
                + pack_varint(self.maximum - self.minimum)
            )
        return struct.pack(_limits(self.dtype), _FLOAT, self.minimum, self.maximum)

    @classmethod
    def unpack(
        cls, fields: ByteReader, dtype: np.dtype[Any], limit: int = LOSSY_SAMPLES
    ) -> Intensity:
        """The inverse of `pack`; limit: of the samples of quantised integers.

        FormatError if the map does not suit the type.
        """
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
                return cls.quantised(dtype, minimum, minimum + span, limit)
        raise FormatError(
            f"expected a map of intensities for {dtype} in HEAD, found kind {kind}: "
            "the file is damaged"
        )


class Statistics:
    """Statistics of stored values, complete after every block of a scan was added.

    numeric: real numbers of at most 64 bits.
    finite: no NaN and no infinity; what follows is valid only then.
    integral: all values are integers below 2**62, of whatever type.
    negative_zero: -0.0 occurs, which integers can't represent.
    at_minimum: voxels that have the minimum.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.numeric = dtype.kind in "iufb" and dtype.itemsize <= 8
        self.finite = True
        self.integral = self.numeric
        self.negative_zero = False
        self.minimum: int | float = 0
        self.maximum: int | float = 0
        self.at_minimum = 0
        self.voxels = 0
        self._distinct: set[float] | None = set()  # None if there are more than MAX_LABELS.
        # Pairs of neighbours in the foreground: all, of equal values, of nearly equal values.
        self._pairs = self._equal = self._near = 0

    def add(self, block: NDArray[Any]) -> None:
        """Add a block [n, h, w] of the scan."""
        if not (self.numeric and self.finite):
            return
        if block.dtype == bool:
            block = block.view(np.uint8)
        low, high = block.min().item(), block.max().item()
        if not np.isfinite([low, high]).all():
            self.finite = False
            return
        self._add_range(block, low, high)
        self.integral = self.integral and _is_integral(block, low, high)
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
        examined = block.reshape(-1)[:: -(-block.size // _EXAMINED_VOXELS)]
        distinct, counts = np.unique(examined, return_counts=True)
        if self._distinct is not None:
            if len(distinct) <= MAX_LABELS:
                distinct = np.unique(block)
            self._distinct.update(distinct.tolist())
            if len(self._distinct) > MAX_LABELS:
                self._distinct = None
        part = block[:: min(max(block.size // _ENOUGH_PAIRS, 1), _MAX_SLICE_DISTANCE)]
        left, right = part[..., :-1], part[..., 1:]
        # The background is flat in scans, too: neither its common value nor the minimum counts.
        foreground = (left != distinct[counts.argmax()]) & (left != self.minimum)
        self._pairs += int(np.count_nonzero(foreground))
        self._equal += int(np.count_nonzero(foreground & (left == right)))
        distance = np.abs(left.astype(_difference_type(left.dtype)) - right)
        self._near += int(np.count_nonzero(foreground & (distance > 0) & (distance <= 2)))

    def integer_range(self) -> tuple[int, int] | None:
        """Minimum and maximum, if integers of a range below 2**24 hold every bit; else None."""
        if not (self.numeric and self.finite and self.integral) or self.negative_zero:
            return None
        if self.maximum - self.minimum >= EXACT_SPAN:
            return None
        return int(self.minimum), int(self.maximum)

    def looks_like_labels(self) -> bool:
        """Whether the values are labels: few of them, or neighbours that are equal or unrelated."""
        if not self.integral:
            return False
        if self._distinct is not None:
            return True
        # Neighbours that differ are close in a scan of few grey levels, but not in a label map.
        flat = self._equal >= LABEL_FLATNESS * self._pairs > 0
        return flat and self._near < 0.5 * (self._pairs - self._equal)


def lossless_reason(
    dtype: np.dtype[Any], statistics: Statistics, sigma: float, *, declared_labels: bool
) -> str | None:
    """Why a scan must not be coded with loss, or None; sigma: its noise, in stored units."""
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
    if intensity.scale < SCALE_RANGE[0]:
        return "its range is too narrow for floating point"
    if intensity.scale > SCALE_RANGE[1] or (intensity.scale != 1 and 0 < sigma < intensity.scale):
        return "its range is too wide for 16 bits"
    return None


def lossy_range(statistics: Statistics) -> tuple[int, int] | tuple[float, float]:
    """Minimum and maximum of a scan: integers if all values are."""
    if statistics.integral:
        return int(statistics.minimum), int(statistics.maximum)
    return float(statistics.minimum), float(statistics.maximum)


def _slices(*arrays: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Corresponding parts along the first axis: what is computed of one stays in the cache."""
    yield from zip(*map(np.atleast_1d, arrays), strict=True) if arrays[0].ndim > 1 else [arrays]


def _is_integral(block: NDArray[Any], low: int | float, high: int | float) -> bool:
    """Whether all values of a block, from low to high, are integers that can be mapped."""
    if max(abs(low), abs(high)) >= MAX_INTEGER:
        return False
    if block.dtype.kind != "f":
        return True
    first = block.reshape(-1)[:1024]
    return bool((first == np.rint(first)).all()) and bool((block == np.rint(block)).all())


def _difference_type(dtype: np.dtype[Any]) -> type[np.signedinteger[Any]]:
    """A signed type that holds the differences of integers of a type, if these are below 2**62."""
    return np.int32 if dtype.kind in "iu" and dtype.itemsize <= 2 else np.int64


def _limits(dtype: np.dtype[Any]) -> str:
    """Layout of a map of floats: kind, minimum, maximum, no wider than the stored type."""
    return "<Bdd" if dtype.itemsize == 8 else "<Bff"


def _holds(dtype: np.dtype[Any], minimum: int, maximum: int) -> bool:
    """Whether a stored type can have these integers as its minimum and maximum."""
    if max(abs(minimum), abs(maximum)) >= MAX_INTEGER:
        return False
    return dtype.kind == "f" or (
        dtype.kind in "iu" and np.iinfo(dtype).min <= minimum <= maximum <= np.iinfo(dtype).max
    )
