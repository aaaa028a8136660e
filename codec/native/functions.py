"""The kernels of the C core by themselves: typed functions of numpy arrays.

Arrays are made contiguous here, outputs are allocated here, and the interpreter's lock is free
while a kernel runs. FormatError for bytes that no encoder writes, ValueError for arguments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.errors import FormatError, Truncated
from mricodec.bitstream.symbols import ProbabilityTables

from . import library

# Side of a block of the transform, and its coefficients.
BLOCK = 8
CHANNELS = 64
# Bytes of an arena that do not depend on the work: alignment and small tables.
SMALL_ARENA = 1 << 20
# Bytes of the run of a value at most: its token, its length and its bits.
BYTES_OF_VALUE = 16

# mrc_status of mrc.h.
ERROR_MEMORY, ERROR_WEIGHTS, ERROR_CAPACITY, ERROR_CANCELLED = 3, 4, 5, 6
ERROR_TRUNCATED, ERROR_DAMAGED, ERROR_TRAILING = 7, 8, 9
# mrc_type of mrc.h.
TYPES = {"int8": 1, "uint8": 2, "int16": 3, "int32": 4}


class Cancelled(Exception):
    """The work was ended by its cancel flag."""


def check(status: int) -> None:
    """Raise what a status of mrc.h stands for."""
    if status == library.OK:
        return
    if status == ERROR_TRUNCATED:
        raise Truncated(
            "expected an entropy-coded slab of whole 32-bit words, found a part of one: "
            "the slab is cut short; get the file again"
        )
    if status == ERROR_DAMAGED:
        raise FormatError(
            "expected an entropy-coded slab, found bytes that no encoder writes: "
            "the stream is damaged or was made with other weights"
        )
    if status == ERROR_TRAILING:
        raise FormatError(
            "expected the end of an entropy-coded slab, found more: "
            "the stream is damaged or was made with other weights"
        )
    if status == ERROR_CANCELLED:
        raise Cancelled
    if status == ERROR_MEMORY:
        raise MemoryError("the C core was given too little memory for a slab")
    if status == ERROR_WEIGHTS:
        raise ValueError("the weights do not fit the network, or their sums are not exact")
    raise ValueError(f"the C core refuses its arguments (status {status})")


class Tensor(ctypes.Structure):
    """mrc_tensor of mrc.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * 4),
        ("type", ctypes.c_int32),
    ]


class Slab(ctypes.Structure):
    """mrc_slab of mrc.h."""

    _fields_ = [
        ("slices", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("peak", ctypes.c_int32),
        ("step", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("depth", ctypes.c_int32),
        ("arena", ctypes.c_void_p),
        ("arena_size", ctypes.c_size_t),
        ("cancel", ctypes.c_void_p),
    ]


class Search(ctypes.Structure):
    """mrc_search of mrc.h."""

    _fields_ = [
        ("depth", ctypes.c_int32),
        ("targets", ctypes.c_void_p),
        ("bands", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    ]


class Tables(ctypes.Structure):
    """mrc_tables of mrc.h."""

    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("octave", ctypes.c_int32),
        ("low", ctypes.c_int32),
    ]


class Calls(ctypes.Structure):
    """mrc_calls of mrc.h."""

    _fields_ = [
        ("index", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("calls", ctypes.c_size_t),
        ("count", ctypes.c_size_t),
    ]


def tensors_of(arrays: Sequence[NDArray[Any]]) -> tuple[Any, list[NDArray[Any]]]:
    """An array of `Tensor`, and the little-endian arrays it points to, which must outlive it.

    ValueError for a type that no tensor of the network has.
    """
    kept = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for array in arrays]
    structures = (Tensor * len(kept))()
    for structure, array in zip(structures, kept, strict=True):
        if array.dtype.name not in TYPES or not 1 <= array.ndim <= 4:
            raise ValueError(f"expected a tensor of integers, found {array.dtype} {array.shape}")
        structure.data = array.ctypes.data
        structure.type = TYPES[array.dtype.name]
        for axis, length in enumerate((*array.shape, 1, 1, 1)[:4]):
            structure.shape[axis] = length
    return structures, kept


def _slab(shape: tuple[int, ...], arena: NDArray[np.uint8], step: int = 1 << 16) -> Slab:
    slices, height, width = shape
    return Slab(slices, height, width, 0, step, 1, 8, arena.ctypes.data, arena.nbytes, None)


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    return -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK)


def analysis(samples: NDArray[np.int32], unit: float = 1.0) -> NDArray[np.float32]:
    """The lapped transform within slices, for encoders.

    samples [K, H, W] -> coefficients of samples / unit, float32 [K, ceil(H/8), ceil(W/8), 64], the
    coefficient of vertical frequency u and horizontal frequency w at 8 u + w. ValueError.
    """
    samples = np.ascontiguousarray(samples, np.int32)
    rows, columns = _blocks(samples.shape)
    out = np.empty((len(samples), rows, columns, CHANNELS), np.float32)
    arena = np.empty(rows * columns * CHANNELS * 4 + SMALL_ARENA, np.uint8)
    slab = _slab(samples.shape, arena)
    check(
        library.load().mrc_analysis(
            samples.ctypes.data, ctypes.byref(slab), unit, out.ctypes.data, out.size
        )
    )
    return out


def synthesis(
    bands: NDArray[np.int32], shape: tuple[int, int, int], depth: int, step: int
) -> NDArray[np.int32]:
    """The inverse transform across and within slices (format/learned.md, "synthesis").

    bands int32 [ceil(K / depth) depth, ceil(H/8), ceil(W/8), 64] in 1/16 of the step, at 8 u + w;
    step in 2**-16 samples -> samples [K, H, W]. ValueError.
    """
    bands = np.ascontiguousarray(bands, np.int32)
    out = np.empty(shape, np.int32)
    rows, columns = _blocks(shape)
    arena = np.empty((rows + 1) * columns * CHANNELS * 8 + SMALL_ARENA, np.uint8)
    slab = _slab(shape, arena, step)
    check(
        library.load().mrc_synthesis(
            bands.ctypes.data, bands.size, ctypes.byref(slab), depth, out.ctypes.data, out.size
        )
    )
    return out


def convolution(
    x: NDArray[np.int16],
    weight: NDArray[np.int8],
    bias: NDArray[np.int32],
    shift: NDArray[np.uint8],
) -> NDArray[np.int32]:
    """A same-size integer convolution (format/learned.md, "integer convolutions").

    x [H, W, inputs] in -127 ... 255, weight [outputs, inputs, n, n] with n = 1 or 3 ->
    [H, W, outputs]. ValueError, also where a sum might not be exact.
    """
    x = np.ascontiguousarray(x, np.int16)
    height, width, inputs = x.shape
    structures, kept = tensors_of([weight, bias, shift])
    out = np.empty((height, width, len(weight)), np.int32)
    padded = 2 * (height + 2) * (width + 2) * inputs
    arena = np.empty(padded + 4 * width * (len(weight) + 16) + 4 * weight.size + SMALL_ARENA, "u1")
    check(
        library.load().mrc_convolution(
            structures,
            x.ctypes.data,
            x.size,
            height,
            width,
            arena.ctypes.data,
            arena.nbytes,
            out.ctypes.data,
            out.size,
        )
    )
    del kept
    return out


def _tables(tables: ProbabilityTables) -> tuple[Tables, NDArray[Any]]:
    weights = np.ascontiguousarray(tables.weights, "<i4")
    rows, columns = weights.shape
    return Tables(weights.ctypes.data, rows, columns, tables.octave, tables.low), weights


def _calls(index: NDArray[np.uint8], sizes: Sequence[int]) -> tuple[Calls, list[NDArray[Any]]]:
    kept: list[NDArray[Any]] = [np.ascontiguousarray(index, np.uint8), np.array(sizes, np.uintp)]
    return Calls(kept[0].ctypes.data, kept[1].ctypes.data, len(sizes), index.size), kept


def _entropy_arena(tables: ProbabilityTables, values: int) -> NDArray[np.uint8]:
    return np.empty(8 * values + 4 * tables.weights.size + SMALL_ARENA, np.uint8)


def entropy_encode(
    tables: ProbabilityTables,
    index: NDArray[np.uint8],
    values: NDArray[np.int32],
    sizes: Sequence[int],
) -> bytes:
    """The bytes of one run of calls of the sizes (format/entropy.md); index, values [sum of sizes].

    ValueError for indices beyond the tables, or tables with more than 32 raw bits.
    """
    structure, weights = _tables(tables)
    calls, kept = _calls(index, sizes)
    values = np.ascontiguousarray(values, np.int32)
    arena = _entropy_arena(tables, values.size)
    out, size = np.empty(BYTES_OF_VALUE * values.size + 64, np.uint8), ctypes.c_size_t()
    check(
        library.load().mrc_entropy_encode(
            ctypes.byref(structure),
            ctypes.byref(calls),
            values.ctypes.data,
            arena.ctypes.data,
            arena.nbytes,
            out.ctypes.data,
            out.nbytes,
            ctypes.byref(size),
        )
    )
    del weights, kept
    return out[: size.value].tobytes()


def entropy_decode(
    tables: ProbabilityTables, index: NDArray[np.uint8], data: bytes, sizes: Sequence[int]
) -> NDArray[np.int32]:
    """The values [sum of sizes] of a run; those beyond int32 are clamped to it. FormatError."""
    structure, weights = _tables(tables)
    calls, kept = _calls(index, sizes)
    values = np.empty(index.size, np.int32)
    arena = _entropy_arena(tables, values.size)
    content = np.frombuffer(data, np.uint8)
    check(
        library.load().mrc_entropy_decode(
            ctypes.byref(structure),
            ctypes.byref(calls),
            content.ctypes.data,
            content.nbytes,
            arena.ctypes.data,
            arena.nbytes,
            values.ctypes.data,
        )
    )
    del weights, kept
    return values
