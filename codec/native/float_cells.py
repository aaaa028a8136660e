"""Floats without loss: classes, samples for the predictive coder, and bits within cells.

`choose` finds the cells of an array, `split` and `join` are exact inverses. Arrays are in native
byte order; their shape does not matter.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import library
from .functions import ERROR_CAPACITY, check

# Special values of an array at most.
MAX_SPECIALS = 255
# Samples of an array whose cells are chosen lie below it and not below its negative.
MAX_SAMPLE_BITS = 23
# Samples of so many bits are coded fastest; cells are smaller only where noise is.
FAST_SAMPLE_BITS = 14
# Cells that lie between neighbours, on the mean: bits below them are as good as random.
CELLS_OF_STEP = 16
# Values that are looked at to find those that are frequent.
EXAMINED = 1 << 15
# A value is special from this share of the values on: it saves all bits of its mantissa.
SPECIAL_SHARE = 1 / 256
# Exponents of cells and of the grid, beyond those of all doubles.
EXPONENTS = (-1200, 1200)


class _Cells(ctypes.Structure):
    """mrc_float_cells of mrc.h."""

    _fields_ = [
        ("bytes", ctypes.c_int32),
        ("cell", ctypes.c_int32),
        ("grid", ctypes.c_int32),
        ("mantissa", ctypes.c_int32),
        ("specials", ctypes.c_void_p),
        ("special_count", ctypes.c_int32),
    ]


class _Range(ctypes.Structure):
    """mrc_float_range of mrc.h."""

    _fields_ = [
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        ("steps", ctypes.c_double),
        ("others", ctypes.c_uint64),
        ("grid", ctypes.c_int32),
        ("mantissa", ctypes.c_int32),
        ("count", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class FloatCells:
    """How floats become samples; exponents are of 2."""

    cell: int
    # All numbers are multiples of 2**grid, and have at most `mantissa` bits behind the first one.
    grid: int
    mantissa: int
    # Bit patterns of values that are told by their class alone.
    specials: tuple[int, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether there are no bits within cells: values are samples times 2**cell."""
        return self.cell <= self.grid


@dataclass(frozen=True)
class SplitFloats:
    """Floats as three parts."""

    # 0, or 1 + the number of a special value; uint8, in the shape of the floats.
    classes: NDArray[np.uint8]
    # int32, in the shape of the floats; 0 where the class is not 0.
    samples: NDArray[np.int32]
    bits: bytes


def choose(values: NDArray[Any]) -> FloatCells | None:
    """Cells for an array of float32 or float64; None if no cells suit it. ValueError.

    None: numbers that are none in more ways than there are classes, or a range of numbers that are
    so many steps wide that samples of 24 bits don't hold them.
    """
    values = _floats(values)
    specials = _find_specials(values)
    if len(specials) > MAX_SPECIALS:
        return None
    measured = _measure(values, specials)
    if measured.others:
        return None
    largest = max(abs(measured.low), abs(measured.high))
    if largest == 0:
        return FloatCells(0, 0, 0, specials)
    # The exponents of cells with which the largest magnitude has so many bits.
    top = math.frexp(largest)[1]
    fast, finest = top - FAST_SAMPLE_BITS, top - MAX_SAMPLE_BITS
    step = measured.steps / max(measured.count, 1) / CELLS_OF_STEP
    wanted = math.frexp(step)[1] - 1 if step > 0 else finest
    cell = max(min(fast, wanted), finest)
    cell = max(cell, min(measured.grid, top))
    return FloatCells(cell, measured.grid, measured.mantissa, specials)


def split(values: NDArray[Any], cells: FloatCells) -> SplitFloats:
    """The parts of an array of float32 or float64. ValueError for a value that has no sample."""
    values = _floats(values)
    structure, kept = _structure(cells, values.itemsize)
    classes = np.empty(values.shape, np.uint8)
    samples = np.empty(values.shape, np.int32)
    size = ctypes.c_size_t()
    # Most values need the bits of their mantissas; small ones may need twice as many.
    for capacity in (values.nbytes + 16, 2 * values.nbytes + 16 + 4 * values.size):
        bits = np.empty(capacity, np.uint8)
        status = library.load().mrc_split_floats(
            ctypes.byref(structure),
            values.ctypes.data,
            values.size,
            classes.ctypes.data,
            samples.ctypes.data,
            bits.ctypes.data,
            bits.nbytes,
            ctypes.byref(size),
        )
        if status != ERROR_CAPACITY:
            break
    check(status)
    del kept
    return SplitFloats(classes, samples, bits[: size.value].tobytes())


def join(parts: SplitFloats, cells: FloatCells, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The floats of parts, float32 or float64. FormatError, ValueError."""
    classes = np.ascontiguousarray(parts.classes, np.uint8)
    samples = np.ascontiguousarray(parts.samples, np.int32)
    if classes.shape != samples.shape:
        raise ValueError(f"expected a class for each sample, found {classes.shape}")
    values = _floats(np.empty(samples.shape, dtype))
    structure, kept = _structure(cells, values.itemsize)
    bits = np.frombuffer(parts.bits, np.uint8)
    check(
        library.load().mrc_join_floats(
            ctypes.byref(structure),
            classes.ctypes.data,
            samples.ctypes.data,
            samples.size,
            bits.ctypes.data,
            bits.nbytes,
            values.ctypes.data,
        )
    )
    del kept
    return values


def _floats(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise ValueError(f"expected float32 or float64, found {values.dtype}")
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _structure(cells: FloatCells, itemsize: int) -> tuple[_Cells, NDArray[np.uint64]]:
    """The structure of cells, and the array it points to, which must outlive it."""
    specials = np.array(cells.specials, np.uint64)
    return (
        _Cells(
            itemsize,
            cells.cell,
            cells.grid,
            cells.mantissa,
            specials.ctypes.data,
            specials.size,
        ),
        specials,
    )


def _measure(values: NDArray[Any], specials: Sequence[int]) -> _Range:
    structure, kept = _structure(FloatCells(0, 0, 0, tuple(specials)), values.itemsize)
    measured = _Range()
    check(
        library.load().mrc_measure_floats(
            ctypes.byref(structure), values.ctypes.data, values.size, ctypes.byref(measured)
        )
    )
    del kept
    return measured


def _find_specials(values: NDArray[Any]) -> tuple[int, ...]:
    """Values that are frequent, the most frequent one first, and all that are no numbers or -0."""
    bits = values.reshape(-1).view(f"u{values.itemsize}")
    part = bits[:: max(1, bits.size // EXAMINED)]
    distinct, counts = np.unique(part, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    frequent = [int(distinct[n]) for n in order if counts[n] > max(2, SPECIAL_SHARE * part.size)]
    if _measure(values, frequent[:MAX_SPECIALS]).others:
        odd = bits[~np.isfinite(values.reshape(-1)) | (bits == 1 << (8 * values.itemsize - 1))]
        frequent += [int(b) for b in np.unique(odd) if int(b) not in frequent]
    return tuple(frequent)
