"""Stored values of any numeric type <-> integer codes for the predictive coder, without loss or with a bound.

By what the volume holds, the first of

    integers of a range below 2**24     Intensity.exact: value = minimum + code
    floats on a grid                    FloatGridMap: value = minimum + code * scale, verified bit by bit
    few distinct values                 PaletteMap: their ranks; NaN, infinities and -0.0 are values like any other
    anything else                       BitOrderMap: the bits as an integer in the order of the values, cut in two

and with a bound on the error: integers, or a grid over the range.
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

MAX_PALETTE = 1 << 16  # distinct values
PALETTE_SHARE = 16  # voxels that each of them must stand for
FINENESS = 8  # a grid within a bound: codes on either side of a value that are within it
Float = NDArray[np.float64]

_SAMPLE = 1 << 16
_GRID, _PALETTE, _ORDERED = 3, 4, 5  # after the kinds of `Intensity`


class SampleMap(Protocol):
    """One of the maps."""

    @property
    def low_bits(self) -> int:
        """Of the integer of a voxel, those that are not in its code; 0 but for `BitOrderMap`."""

    @property
    def exact(self) -> bool:
        """Whether `values` gives back, bit by bit, what `codes` was given."""

    @property
    def peak(self) -> int:
        """The largest code, below 2**24."""

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Stored values -> codes of the same shape, 0 .. peak for the values of the volume."""

    def values(
        self, codes: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        """The inverse; low: the low bits, if there are any. Codes outside 0 .. peak are taken for the nearest."""

    def pack(self) -> bytes:
        """As it stands in HEAD.params."""


@dataclass(frozen=True)
class AffineMap:
    """`Intensity` as a `SampleMap`: integers, of a range below 2**24 or divided by a scale."""

    intensity: Intensity
    low_bits = 0

    @property
    def exact(self) -> bool:
        return self.intensity.scale == 1

    @property
    def peak(self) -> int:
        return self.intensity.peak

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        if values.dtype.kind == "f":  # those of a forged layer may be beyond any integer
            values = np.clip(values, self.intensity.minimum, self.intensity.maximum)
        return self.intensity.samples(values)

    def values(
        self, codes: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        return self.intensity.values(codes)

    def pack(self) -> bytes:
        return self.intensity.pack()


@dataclass(frozen=True)
class FloatGridMap:
    """value = minimum + code * scale in float64, at most maximum if it has one, then rounded to the type."""

    dtype: np.dtype[Any]  # native
    minimum: float
    scale: float
    peak: int
    low_bits = 0
    exact = False  # where it is meant to be, the digest sees to it

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        above = (values.astype(np.float64) - self.minimum) / self.scale
        return np.clip(np.rint(above), 0, self.peak).astype(np.int32)

    def values(
        self, codes: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            values: NDArray[Any] = (
                np.clip(codes, 0, self.peak) * self.scale + self.minimum
            ).astype(self.dtype)
        return values

    def pack(self) -> bytes:
        return struct.pack("<Bdd", _GRID, self.minimum, self.scale) + pack_varint(self.peak)

    @classmethod
    def unpack(cls, fields: ByteReader, dtype: np.dtype[Any]) -> FloatGridMap:
        """After the kind."""
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
    """The distinct values of a volume, by their bits; a code is a rank."""

    low_bits = 0
    exact = True

    def __init__(self, dtype: np.dtype[Any], ordered: NDArray[np.uint64]) -> None:
        """ordered: rising, of `ordered_bits`."""
        self._dtype = dtype
        self._ordered = ordered
        self._stored = from_ordered(ordered, dtype)

    @property
    def peak(self) -> int:
        return self._ordered.size - 1

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        ranks = self._ordered.searchsorted(ordered_bits(values))
        return np.minimum(ranks, self.peak).astype(np.int32)

    def values(
        self, codes: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        return self._stored[np.clip(codes, 0, self.peak)]

    def pack(self) -> bytes:
        size = self._dtype.itemsize
        planes = (
            np.diff(self._ordered, prepend=np.uint64(0))
            .astype("<u8")
            .view(np.uint8)
            .reshape(-1, 8)
            .T[:size]
        )
        packed = compress(planes.tobytes())
        return (
            bytes((_PALETTE,)) + pack_varint(len(self._ordered)) + pack_varint(len(packed)) + packed
        )

    @classmethod
    def unpack(cls, fields: ByteReader, dtype: np.dtype[Any]) -> PaletteMap:
        """After the kind."""
        count, size = fields.varint(), fields.varint()
        packed = fields.take(size)
        if dtype.kind not in "iuf" or dtype.itemsize > 8 or not 0 < count <= MAX_PALETTE:
            raise _bad(_PALETTE, dtype)
        content = decompress(packed, count * dtype.itemsize, "the palette in HEAD")
        if len(content) != count * dtype.itemsize:
            raise FormatError(
                f"expected {count} values in the palette in HEAD, found {len(content)} bytes: the file is damaged"
            )
        steps = np.zeros((8, count), np.uint8)
        steps[: dtype.itemsize] = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, count)
        ordered = np.add.accumulate(steps.T.copy().view("<u8").reshape(-1), dtype=np.uint64)
        most = np.uint64(256**dtype.itemsize - 1)
        if (ordered[1:] <= ordered[:-1]).any() or ordered[-1] > most:
            raise FormatError(
                "expected rising values in the palette in HEAD, found others: the file is damaged"
            )
        return cls(dtype, ordered)


@dataclass(frozen=True)
class BitOrderMap:
    """The bits of a value as an unsigned integer that rises with it; the code is its upper part, less the least."""

    dtype: np.dtype[Any]  # native
    minimum: int
    maximum: int
    low_bits: int
    exact = True

    @classmethod
    def over(cls, dtype: np.dtype[Any], minimum: int, maximum: int) -> BitOrderMap:
        """With as few low bits as the range allows."""
        low_bits = max(0, (maximum - minimum).bit_length() - 24)
        while (maximum >> low_bits) - (minimum >> low_bits) >= EXACT_SPAN:
            low_bits += 1
        return cls(dtype, minimum, maximum, low_bits)

    @property
    def peak(self) -> int:
        return (self.maximum >> self.low_bits) - (self.minimum >> self.low_bits)

    def samples(self, values: NDArray[Any]) -> NDArray[np.int32]:
        shift = np.uint64(self.low_bits)
        least = np.uint64(self.minimum >> self.low_bits)
        upper = np.clip(
            ordered_bits(values) >> shift, least, np.uint64(self.maximum >> self.low_bits)
        )
        codes: NDArray[np.int32] = (upper - least).astype(np.int32)
        return codes

    def low(self, values: NDArray[Any]) -> NDArray[np.uint64]:
        """The low bits of each value."""
        return ordered_bits(values) & np.uint64((1 << self.low_bits) - 1)

    def values(
        self, codes: NDArray[np.int32], low: NDArray[np.uint64] | None = None
    ) -> NDArray[Any]:
        upper = np.clip(codes, 0, self.peak).astype(np.uint64) + np.uint64(
            self.minimum >> self.low_bits
        )
        bits = upper << np.uint64(self.low_bits)
        return from_ordered(bits if low is None else bits | low, self.dtype)

    def pack(self) -> bytes:
        return struct.pack("<BQQ", _ORDERED, self.minimum, self.maximum)

    @classmethod
    def unpack(cls, fields: ByteReader, dtype: np.dtype[Any]) -> BitOrderMap:
        """After the kind."""
        minimum, maximum = struct.unpack("<QQ", fields.take(16))
        if (
            dtype.kind not in "iuf"
            or dtype.itemsize > 8
            or not minimum <= maximum < 256**dtype.itemsize
        ):
            raise _bad(_ORDERED, dtype)
        return cls.over(dtype, minimum, maximum)


def unpack_map(fields: ByteReader, dtype: np.dtype[Any]) -> SampleMap:
    """From HEAD.params of the predictive coder. FormatError if the map does not suit the type."""
    kind = fields.peek()
    if kind in (_GRID, _PALETTE, _ORDERED):
        fields.take(1)
        readers: dict[int, Any] = {_GRID: FloatGridMap, _PALETTE: PaletteMap, _ORDERED: BitOrderMap}
        found: SampleMap = readers[kind].unpack(fields, dtype)
        return found
    intensity = Intensity.unpack(fields, dtype, most=EXACT_SPAN)
    if not isinstance(intensity.scale, int):
        raise _bad(kind, dtype)
    return AffineMap(intensity)


def exact_map(
    dtype: np.dtype[Any], statistics: Statistics, blocks: Iterator[NDArray[Any]]
) -> SampleMap | None:
    """The map for a volume without loss, None if only zstd can take it; blocks: the volume once more."""
    whole = statistics.whole_range() if dtype.kind != "b" else None
    if whole is not None:
        return AffineMap(Intensity.exact(dtype, *whole))
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        return None
    found = _BitStatistics()
    for block in blocks:
        found.add(block)
    distinct = found.distinct()
    if distinct is not None and distinct.size >= 2:
        grid = find_grid(from_ordered(distinct, dtype)) if dtype.kind == "f" else None
        if grid is not None:
            return grid
        if distinct.size * PALETTE_SHARE <= found.voxels:
            return PaletteMap(dtype, distinct)
    return BitOrderMap.over(dtype, found.minimum, found.maximum)


def bounded_map(
    dtype: np.dtype[Any], statistics: Statistics, max_error: float
) -> tuple[SampleMap, int] | None:
    """A map, and the largest error in codes, that together keep each value within `max_error`.

    None if none but a lossless one does. The statistics are those of finite numbers that are no labels.
    """
    if statistics.integral:
        minimum, maximum = lossy_range(statistics)
        assert isinstance(minimum, int) and isinstance(maximum, int)
        whole = math.floor(min(max_error, maximum - minimum))
        if maximum - minimum < EXACT_SPAN:
            exact = AffineMap(Intensity.exact(dtype, minimum, maximum))
            return (exact, whole) if whole >= 1 and _fits(dtype, minimum, maximum) else None
        intensity = Intensity.spread(dtype, minimum, maximum, EXACT_SPAN)
        rest = whole - int(intensity.scale) // 2
        return (
            (AffineMap(intensity), rest // int(intensity.scale))
            if rest >= 0 and _fits(dtype, minimum, maximum)
            else None
        )
    low, high = (float(v) for v in lossy_range(statistics))
    rounding = float(np.finfo(dtype).eps) * max(abs(low), abs(high))
    room = (max_error - rounding) * (1 - 2.0**-20)  # float64's own rounding is far below
    if not room > 8 * rounding or not math.isfinite(high - low):
        return None
    for steps in (FINENESS, 0):
        scale = room / (steps + 0.5)
        peak = math.ceil((high - low) / scale)
        if 0 < peak < EXACT_SPAN - 1 and scale > 0:
            return FloatGridMap(dtype, low, scale, peak), steps
    return None


def _fits(dtype: np.dtype[Any], minimum: int, maximum: int) -> bool:
    """Whether every integer of the range is a value of the type."""
    if dtype.kind != "f":
        return True
    return max(abs(minimum), abs(maximum)) <= 1 << (int(np.finfo(dtype).nmant) + 1)


def find_grid(values: NDArray[Any]) -> FloatGridMap | None:
    """The grid on which all of these distinct, rising floats lie, bit by bit, if there is one.

    Scanners' software makes them as integer * slope + intercept in the header's float32; so these are tried.
    """
    if not np.isfinite(values).all() or ((values == 0) & np.signbit(values)).any():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        x = values.astype(np.float64)
        scale = _step(x)
        if scale is None:
            return None
        codes = np.rint((x - x[0]) / scale)
        slope, start = np.polyfit(codes, x, 1) if x.size > 2 else (scale, x[0])
        zero = np.rint(start / slope)
        last = codes[-1] + zero
        for step in (
            float(np.float32(slope)),
            float(slope),
            float(np.float32(x[-1] / last)) if last else 0.0,
        ):
            for first in (zero * step, np.float32(start), start, np.rint(start), x[0]):
                if 0 < step < math.inf and math.isfinite(first + codes[-1] * step):
                    grid = FloatGridMap(values.dtype, float(first), step, int(codes[-1]))
                    if grid.values(codes.astype(np.int32)).tobytes() == values.tobytes():
                        return grid
    return None


def _step(x: Float) -> float | None:
    """The step of a grid that the rising numbers may lie on, if its codes are below 2**24.

    From ever wider parts of the range, so that what its error adds up to never reaches half a step.
    """
    scale = float(np.diff(x).min())
    reach = 1.0
    while scale > 0 and (x[-1] - x[0]) / np.float64(scale) < EXACT_SPAN:
        near = x[x <= x[0] + reach * scale]
        codes = np.rint((near[-1] - near[0]) / scale)
        if codes > 0:
            scale = float((near[-1] - near[0]) / codes)
        if near.size == x.size:
            return scale
        reach *= 4
    return None


class _BitStatistics:
    """Range and distinct values of the bits of blocks."""

    def __init__(self) -> None:
        self.voxels = 0
        self.minimum, self.maximum = 2**64, 0
        self._distinct: NDArray[np.uint64] | None = np.zeros(0, np.uint64)

    def add(self, block: NDArray[Any]) -> None:
        bits = ordered_bits(block).reshape(-1)
        self.voxels += bits.size
        self.minimum = min(self.minimum, int(bits.min()))
        self.maximum = max(self.maximum, int(bits.max()))
        if self._distinct is None:
            return
        sample = np.unique(bits[:: -(-bits.size // _SAMPLE)])
        self._merge(sample)
        if sample.size * 2 > _SAMPLE:  # more would only be sorted in vain
            self._distinct = None
        if self._distinct is not None:
            self._merge(np.unique(bits))

    def _merge(self, found: NDArray[np.uint64]) -> None:
        if self._distinct is not None:
            self._distinct = np.union1d(self._distinct, found)
            if self._distinct.size > MAX_PALETTE:
                self._distinct = None

    def distinct(self) -> NDArray[np.uint64] | None:
        """All values, if they are few."""
        return self._distinct


def ordered_bits(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Numbers of up to 64 bits -> unsigned integers that rise with them; NaN at the ends, -0.0 below 0.0."""
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
