"""Sample maps: stored values of any numeric type <-> integer samples for the predictive coder.

Without loss, the first of these that fits the scan:

    integers of a range below 2**24   AffineMap    value = minimum + sample
    floats on a grid                  FloatGridMap value = minimum + sample * scale, bit by bit
    few distinct values               PaletteMap   ranks; NaN, infinities and -0.0 are values, too
    anything else                     BitOrderMap  the upper bits of an order-preserving integer

Within a bound on the error: an AffineMap of integers, or a FloatGridMap over the range.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError
from mricodec.bitstream.fields import ByteReader, pack_varint
from mricodec.bitstream.sections import compress, decompress

from .intensity import EXACT_SPAN, Intensity, Statistics, lossy_range

# Distinct values of the largest palette.
MAX_PALETTE = 1 << 16
# Voxels per distinct value from which on a palette is used.
MIN_VOXELS_PER_VALUE = 16
# Steps of a grid that fit into the bound on either side of a value.
BOUND_STEPS = 8
Float = NDArray[np.float64]

# Voxels of a block that are examined before all of its distinct values are sorted.
_EXAMINED_VOXELS = 1 << 16
# Kinds of maps in a stream, after the three of `Intensity`.
_GRID, _PALETTE, _BIT_ORDER = 3, 4, 5


class SampleMap(Protocol):
    """A map of stored values to integer samples from 0 to `peak`."""

    @property
    def low_bits(self) -> int:
        """Low bits of a value that its sample does not hold; 0 for all maps but `BitOrderMap`."""

    @property
    def exact(self) -> bool:
        """Whether values(samples(x), low bits of x) is x, bit by bit."""

    @property
    def peak(self) -> int:
        """The largest sample, below 2**24."""

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values -> samples of the same shape, from 0 to peak."""

    def values(
        self, samples: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        """Samples, clipped to 0 .. peak, -> stored values; low: their low bits, 0 if omitted."""

    def pack(self) -> bytes:
        """The bytes of the map in HEAD.params."""


@dataclass(frozen=True)
class AffineMap:
    """An `Intensity` of integers as a `SampleMap`; exact where its scale is 1."""

    intensity: Intensity
    low_bits = 0

    @property
    def exact(self) -> bool:
        """Whether the integers are not quantised."""
        return self.intensity.scale == 1

    @property
    def peak(self) -> int:
        """The largest sample."""
        return self.intensity.peak

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values, clipped to the range, -> samples of the same shape."""
        if values.dtype.kind == "f":  # Those of a forged layer may exceed every integer.
            values = np.clip(values, self.intensity.minimum, self.intensity.maximum)
        return self.intensity.samples(values)

    def values(
        self, samples: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        """Samples -> stored values of the same shape."""
        return self.intensity.values(samples)

    def pack(self) -> bytes:
        """The bytes of the map in HEAD.params."""
        return self.intensity.pack()


@dataclass(frozen=True)
class FloatGridMap:
    """value = minimum + sample * scale in float64, rounded to the stored type.

    dtype: float in native byte order. The map is not exact by itself: a lossless stream uses it
    where every distinct value was verified, and its digest confirms it.
    """

    dtype: np.dtype[Any]
    minimum: float
    scale: float
    peak: int
    low_bits = 0
    exact = False

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values -> the nearest samples, of the same shape."""
        above = (values.astype(np.float64) - self.minimum) / self.scale
        return np.clip(np.rint(above), 0, self.peak).astype(np.int32)

    def values(
        self, samples: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        """Samples -> stored values of the same shape."""
        with np.errstate(over="ignore"):
            exact = np.clip(samples, 0, self.peak) * self.scale + self.minimum
            values: NDArray[Any] = exact.astype(self.dtype)
        return values

    def pack(self) -> bytes:
        """The bytes of the map in HEAD.params."""
        return struct.pack("<Bdd", _GRID, self.minimum, self.scale) + pack_varint(self.peak)

    @classmethod
    def unpack(cls, fields: ByteReader, dtype: np.dtype[Any]) -> FloatGridMap:
        """From the fields after the kind. FormatError if the map does not suit the type."""
        minimum, scale = struct.unpack("<dd", fields.take(16))
        peak = fields.varint()
        if (
            dtype.kind != "f"
            or dtype.itemsize > 8
            or not (0 < scale < math.inf and abs(minimum) < math.inf)
        ):
            raise _bad(_GRID, dtype)
        if not 0 < peak < EXACT_SPAN or not math.isfinite(minimum + peak * scale):
            raise _bad(_GRID, dtype)
        return cls(dtype, minimum, scale, peak)


class PaletteMap:
    """The distinct values of a scan in the order of `ordered_bits`; a sample is a rank."""

    low_bits = 0
    exact = True

    def __init__(self, dtype: np.dtype[Any], ordered: NDArray[np.uint64]) -> None:
        """ordered: the distinct values as rising `ordered_bits`; dtype: in native byte order."""
        self._dtype = dtype
        self._ordered = ordered
        self._stored = from_ordered(ordered, dtype)

    @property
    def peak(self) -> int:
        """The largest rank."""
        return self._ordered.size - 1

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values -> ranks of the same shape."""
        ranks = self._ordered.searchsorted(ordered_bits(values))
        return np.minimum(ranks, self.peak).astype(np.int32)

    def values(
        self, samples: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        """Ranks -> stored values of the same shape."""
        return self._stored[np.clip(samples, 0, self.peak)]

    def pack(self) -> bytes:
        """The bytes of the map in HEAD.params: differences of the values, in byte planes."""
        steps = np.diff(self._ordered, prepend=np.uint64(0)).astype("<u8").view(np.uint8)
        packed = compress(steps.reshape(-1, 8).T[: self._dtype.itemsize].tobytes())
        count = pack_varint(len(self._ordered))
        return bytes((_PALETTE,)) + count + pack_varint(len(packed)) + packed

    @classmethod
    def unpack(cls, fields: ByteReader, dtype: np.dtype[Any]) -> PaletteMap:
        """From the fields after the kind. FormatError if the map does not suit the type."""
        count, size = fields.varint(), fields.varint()
        packed = fields.take(size)
        if dtype.kind not in "iuf" or dtype.itemsize > 8 or not 0 < count <= MAX_PALETTE:
            raise _bad(_PALETTE, dtype)
        content = decompress(packed, count * dtype.itemsize, "the palette in HEAD")
        if len(content) != count * dtype.itemsize:
            raise FormatError(
                f"expected {count} values in the palette in HEAD, found {len(content)} bytes: "
                "the file is damaged"
            )
        steps = np.zeros((8, count), np.uint8)
        steps[: dtype.itemsize] = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, count)
        ordered = np.add.accumulate(steps.T.copy().view("<u8").reshape(-1), dtype=np.uint64)
        limit = np.uint64(256**dtype.itemsize - 1)
        if (ordered[1:] <= ordered[:-1]).any() or ordered[-1] > limit:
            raise FormatError(
                "expected rising values in the palette in HEAD, found others: the file is damaged"
            )
        return cls(dtype, ordered)


@dataclass(frozen=True)
class BitOrderMap:
    """The sample is the upper part of the `ordered_bits` of a value, less that of the minimum.

    dtype: in native byte order; minimum, maximum: ordered bits of the range of the scan; low_bits:
    bits below the upper part.
    """

    dtype: np.dtype[Any]
    minimum: int
    maximum: int
    low_bits: int
    exact = True

    @classmethod
    def over(cls, dtype: np.dtype[Any], minimum: int, maximum: int) -> BitOrderMap:
        """The map of a range with as few low bits as possible."""
        low_bits = max(0, (maximum - minimum).bit_length() - 24)
        while (maximum >> low_bits) - (minimum >> low_bits) >= EXACT_SPAN:
            low_bits += 1
        return cls(dtype, minimum, maximum, low_bits)

    @property
    def peak(self) -> int:
        """The largest sample."""
        return (self.maximum >> self.low_bits) - (self.minimum >> self.low_bits)

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values, clipped to the range, -> samples of the same shape."""
        lowest = np.uint64(self.minimum >> self.low_bits)
        highest = np.uint64(self.maximum >> self.low_bits)
        upper = np.clip(ordered_bits(values) >> np.uint64(self.low_bits), lowest, highest)
        samples: NDArray[np.int32] = (upper - lowest).astype(np.int32)
        return samples

    def low(self, values: NDArray[Any]) -> NDArray[np.uint64]:
        """The low bits of each stored value."""
        return ordered_bits(values) & np.uint64((1 << self.low_bits) - 1)

    def values(
        self, samples: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        """Samples and their low bits -> stored values of the same shape."""
        lowest = np.uint64(self.minimum >> self.low_bits)
        upper = np.clip(samples, 0, self.peak).astype(np.uint64) + lowest
        bits = upper << np.uint64(self.low_bits)
        return from_ordered(bits if low is None else bits | low, self.dtype)

    def pack(self) -> bytes:
        """The bytes of the map in HEAD.params."""
        return struct.pack("<BQQ", _BIT_ORDER, self.minimum, self.maximum)

    @classmethod
    def unpack(cls, fields: ByteReader, dtype: np.dtype[Any]) -> BitOrderMap:
        """From the fields after the kind. FormatError if the map does not suit the type."""
        minimum, maximum = struct.unpack("<QQ", fields.take(16))
        if (
            dtype.kind not in "iuf"
            or dtype.itemsize > 8
            or not minimum <= maximum < 256**dtype.itemsize
        ):
            raise _bad(_BIT_ORDER, dtype)
        return cls.over(dtype, minimum, maximum)


def unpack_map(fields: ByteReader, dtype: np.dtype[Any]) -> SampleMap:
    """The map in HEAD.params of the predictive coder. FormatError if it does not suit the type."""
    kind = fields.peek()
    maps: dict[int, Any] = {_GRID: FloatGridMap, _PALETTE: PaletteMap, _BIT_ORDER: BitOrderMap}
    if kind in maps:
        fields.take(1)
        sample_map: SampleMap = maps[kind].unpack(fields, dtype)
        return sample_map
    intensity = Intensity.unpack(fields, dtype, limit=EXACT_SPAN)
    if not isinstance(intensity.scale, int):
        raise _bad(kind, dtype)
    return AffineMap(intensity)


def exact_map(
    dtype: np.dtype[Any], statistics: Statistics, blocks: Iterator[NDArray[Any]]
) -> SampleMap | None:
    """The map of a scan without loss; None if only the store coder can take it.

    blocks: the scan from its start; they are read only if the statistics do not suffice.
    """
    limits = statistics.integer_range() if dtype.kind != "b" else None
    if limits is not None:
        return AffineMap(Intensity.exact(dtype, *limits))
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        return None
    bits = _BitStatistics()
    for block in blocks:
        bits.add(block)
    distinct = bits.distinct()
    if distinct is not None and distinct.size >= 2:
        grid = find_grid(from_ordered(distinct, dtype)) if dtype.kind == "f" else None
        if grid is not None:
            return grid
        if distinct.size * MIN_VOXELS_PER_VALUE <= bits.voxels:
            return PaletteMap(dtype, distinct)
    return BitOrderMap.over(dtype, bits.minimum, bits.maximum)


def bounded_map(
    dtype: np.dtype[Any], statistics: Statistics, max_error: float
) -> tuple[SampleMap, int] | None:
    """A map and a largest error in samples that keep each value within `max_error` stored units.

    None if only a lossless map does. The statistics are of finite numbers that are not labels.
    """
    if statistics.integral:
        return _bounded_integer_map(dtype, statistics, max_error)
    low, high = (float(v) for v in lossy_range(statistics))
    rounding = float(np.finfo(dtype).eps) * max(abs(low), abs(high))
    room = (max_error - rounding) * (1 - 2.0**-20)  # The rounding of float64 is far smaller.
    if not room > 8 * rounding or not math.isfinite(high - low):
        return None
    for steps in (BOUND_STEPS, 0):
        scale = room / (steps + 0.5)
        peak = math.ceil((high - low) / scale)
        if 0 < peak < EXACT_SPAN - 1 and scale > 0:
            return FloatGridMap(dtype, low, scale, peak), steps
    return None


def _bounded_integer_map(
    dtype: np.dtype[Any], statistics: Statistics, max_error: float
) -> tuple[SampleMap, int] | None:
    """`bounded_map` of integers: exact samples where the range allows it, else quantised ones."""
    minimum, maximum = int(statistics.minimum), int(statistics.maximum)
    if not _fits(dtype, minimum, maximum):
        return None
    bound = math.floor(min(max_error, maximum - minimum))
    if maximum - minimum < EXACT_SPAN:
        return (AffineMap(Intensity.exact(dtype, minimum, maximum)), bound) if bound >= 1 else None
    intensity = Intensity.quantised(dtype, minimum, maximum, EXACT_SPAN)
    scale = int(intensity.scale)
    rest = bound - scale // 2
    return (AffineMap(intensity), rest // scale) if rest >= 0 else None


def _fits(dtype: np.dtype[Any], minimum: int, maximum: int) -> bool:
    """Whether every integer of the range is a value of the type."""
    if dtype.kind != "f":
        return True
    return max(abs(minimum), abs(maximum)) <= 1 << (int(np.finfo(dtype).nmant) + 1)


def find_grid(values: NDArray[Any]) -> FloatGridMap | None:
    """The grid on which all of these distinct, rising floats lie, bit by bit; None without one.

    Reconstruction software computes integer * slope + intercept with float32 numbers of a header,
    so that steps and origins of float32 are tried, too.
    """
    if not np.isfinite(values).all() or ((values == 0) & np.signbit(values)).any():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        x = values.astype(np.float64)
        scale = _grid_step(x)
        if scale is None:
            return None
        samples = np.rint((x - x[0]) / scale)
        slope, start = np.polyfit(samples, x, 1) if x.size > 2 else (scale, x[0])
        zero = np.rint(start / slope)
        last = samples[-1] + zero
        from_last = float(np.float32(x[-1] / last)) if last else 0.0
        for step in (float(np.float32(slope)), float(slope), from_last):
            for first in (zero * step, np.float32(start), start, np.rint(start), x[0]):
                if 0 < step < math.inf and math.isfinite(first + samples[-1] * step):
                    grid = FloatGridMap(values.dtype, float(first), step, int(samples[-1]))
                    if grid.values(samples.astype(np.int32)).tobytes() == values.tobytes():
                        return grid
    return None


def _grid_step(x: Float) -> float | None:
    """The step of a grid on which rising numbers may lie; None if it has 2**24 samples or more.

    It is refined over ever wider parts of the range, so that its accumulated error stays below half
    a step.
    """
    scale = float(np.diff(x).min())
    reach = 1.0
    while scale > 0 and (x[-1] - x[0]) / np.float64(scale) < EXACT_SPAN:
        near = x[x <= x[0] + reach * scale]
        steps = np.rint((near[-1] - near[0]) / scale)
        if steps > 0:
            scale = float((near[-1] - near[0]) / steps)
        if near.size == x.size:
            return scale
        reach *= 4
    return None


class _BitStatistics:
    """Range and distinct values of the `ordered_bits` of the blocks of a scan."""

    def __init__(self) -> None:
        self.voxels = 0
        self.minimum, self.maximum = 2**64, 0
        self._distinct: NDArray[np.uint64] | None = np.zeros(0, np.uint64)

    def add(self, block: NDArray[Any]) -> None:
        """Add a block of the scan."""
        bits = ordered_bits(block).reshape(-1)
        self.voxels += bits.size
        self.minimum = min(self.minimum, int(bits.min()))
        self.maximum = max(self.maximum, int(bits.max()))
        if self._distinct is None:
            return
        examined = np.unique(bits[:: -(-bits.size // _EXAMINED_VOXELS)])
        self._merge(examined)
        if examined.size * 2 > _EXAMINED_VOXELS:  # All values are too many for a palette.
            self._distinct = None
        if self._distinct is not None:
            self._merge(np.unique(bits))

    def _merge(self, values: NDArray[np.uint64]) -> None:
        if self._distinct is not None:
            self._distinct = np.union1d(self._distinct, values)
            if self._distinct.size > MAX_PALETTE:
                self._distinct = None

    def distinct(self) -> NDArray[np.uint64] | None:
        """The distinct values in rising order; None if they are too many for a palette."""
        return self._distinct


def ordered_bits(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Numbers of up to 64 bits -> unsigned integers that rise with them, of the same shape.

    NaN stand at both ends, by their sign, and -0.0 stands below 0.0.
    """
    size = values.dtype.itemsize
    bits = np.ascontiguousarray(values).view(f"u{size}").astype(np.uint64)
    sign = np.uint64(1 << (8 * size - 1))
    if values.dtype.kind == "u":
        return bits
    if values.dtype.kind == "i":
        return bits ^ sign
    every = np.uint64(256**size - 1)
    return np.where(bits & sign, ~bits & every, bits | sign)


def from_ordered(ordered: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The inverse of `ordered_bits`."""
    size = dtype.itemsize
    sign = np.uint64(1 << (8 * size - 1))
    every = np.uint64(256**size - 1)
    bits = ordered
    if dtype.kind == "i":
        bits = ordered ^ sign
    elif dtype.kind == "f":
        bits = np.where(ordered & sign, ordered & ~sign, ~ordered & every)
    return bits.astype(f"u{size}").view(dtype)


def _bad(kind: int, dtype: np.dtype[Any]) -> FormatError:
    return FormatError(
        f"expected a map for {dtype} in HEAD, found kind {kind}: the file is damaged"
    )
