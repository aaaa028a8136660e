"""Lossless coding of slabs of integer voxels, without a network.

`wavefront` predicts the voxels of a lattice plane and says how uncertain it is; here the errors meet their
probability tables. `lossless_fit` makes the encoder's choices; they travel at the start of the slab's stream.
FORMAT.md, "Lattice coder", has every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .wavefront import (
    BUCKETS,
    CANDIDATES,
    FIRST_COARSE,
    FIRST_COARSE_ROW,
    FIRST_FINE,
    FRACTIONS,
    KINDS,
    OCTAVE,
    STAGES,
    UNIT,
    Predictor,
    TableSet,
    Wavefront,
    shipped,
)

MAX_SPAN = (1 << 24) - 1
MAX_SLICES = 32  # coded together
STEP_KIND = FIRST_FINE + 3 * OCTAVE  # of differences between kinds: a scale of 1
NO_PREDICTOR = Predictor((), np.zeros((STAGES, 0), np.int32))


class SymbolCoder(Protocol):
    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[np.int64]:
        """index [1, n], values [1, n] to encode or None to decode -> the values."""


def __getattr__(name: str) -> dict[str, TableSet]:
    if name == "TABLES":  # loaded when first asked for
        return shipped().tables
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def encode_slab(x: NDArray[np.int32], coder: SymbolCoder) -> None:
    """Codes integers [K, H, W] of a range below 2**24. ValueError for others."""
    if x.ndim != 3 or x.size == 0 or x.dtype.kind not in "iu":
        raise ValueError(f"expected integer voxels [K, H, W], found {x.dtype} of shape {x.shape}")
    span = int(x.max()) - int(x.min())
    if span > MAX_SPAN:
        raise ValueError(f"expected values within {MAX_SPAN} of each other, found a range of {span}")
    shape = _folded((x.shape[0], x.shape[1], x.shape[2]))
    folded = np.pad(x.reshape(-1), (0, math.prod(shape) - x.size), mode="edge").reshape(shape)
    for first in range(0, len(folded), MAX_SLICES):
        _encode(folded[first : first + MAX_SLICES], coder)


def _encode(x: NDArray[np.int32], coder: SymbolCoder) -> None:
    from . import lossless_fit as fit

    low, span = int(x.min()), int(x.max()) - int(x.min())
    if span == 0:
        _side_information(coder, x.shape, _Side(low, 0))
        return
    slab = (x - low).astype(np.int32)
    palette = fit.choose_palette(slab)
    if palette is not None:
        slab = palette.searchsorted(slab).astype(np.int32)
    side = _Side(low, span, palette, fit.choose_border(slab), fit.fit_predictor(slab))

    context, error, sizes = predict(slab, side.largest, side.border, side.predictor)
    side = replace(side, kinds=fit.choose_kinds(context, error))
    _side_information(coder, x.shape, side)
    index = index_of_context(side.kinds)[context]
    error += _half_of_index()[index]
    start = 0
    for size in sizes:
        plane = slice(start, start + size)
        coder.code("voxel", index[None, plane], error[None, plane])
        start += size


def predict(
    slab: NDArray[np.int32], largest: int, border: int, predictor: Predictor
) -> tuple[NDArray[np.int16], NDArray[np.int32], list[int]]:
    """Contexts and errors [voxels] of a slab [K, H, W] in the order of its planes, and how many a plane has."""
    slices, height, width = slab.shape
    flat = slab.reshape(-1)
    context, error = np.empty(flat.size, np.int16), np.empty(flat.size, np.int32)
    sizes: list[int] = []
    start = 0
    wavefront = Wavefront((slices, height, width), largest, border, predictor, shipped().scale_weights)
    for plane in wavefront.planes():
        values = flat[plane.voxels].astype(np.float64)
        end = start + values.size
        context[start:end] = plane.context
        error[start:end] = (values - plane.nearest) * plane.sign
        wavefront.put(values)
        sizes.append(values.size)
        start = end
    return context, error, sizes


def decode_slab(shape: tuple[int, int, int], coder: SymbolCoder) -> NDArray[np.int32]:
    """Integers [K, H, W]. From a damaged stream they may be wrong, which only checksums tell."""
    folded = np.empty(_folded(shape), np.int32)
    for first in range(0, len(folded), MAX_SLICES):
        _decode(folded[first : first + MAX_SLICES], coder)
    return folded.reshape(-1)[: math.prod(shape)].reshape(shape)


def _decode(x: NDArray[np.int32], coder: SymbolCoder) -> None:
    """Into x."""
    side = _side_information(coder, x.shape, None)
    x[:] = side.low
    if side.span == 0:
        return
    slices, height, width = x.shape
    slab = np.empty((slices, height, width), np.int32)
    flat = slab.reshape(-1)
    index_of, half_of = index_of_context(side.kinds), _half_of_index()
    wavefront = Wavefront((slices, height, width), side.largest, side.border, side.predictor, shipped().scale_weights)
    for plane in wavefront.planes():
        index = index_of[plane.context]
        error = coder.code("voxel", index[None], None)[0] - half_of[index]
        values = np.clip(plane.nearest + plane.sign * error, 0, side.largest)
        flat[plane.voxels] = values
        wavefront.put(values)
    x += slab if side.palette is None else side.palette[slab]


def index_of_kind() -> NDArray[np.uint8]:
    """[KINDS, 16]: the table index of a kind, by the 16ths from the prediction to the nearest integer, 0 .. 8."""
    kind = np.arange(KINDS)[:, None]
    fraction = np.minimum(np.arange(UNIT) * FRACTIONS // (UNIT // 2 + 1), FRACTIONS - 1)
    fine = FIRST_FINE + (kind - FIRST_FINE) * FRACTIONS + fraction
    coarse = kind - FIRST_COARSE + FIRST_COARSE_ROW
    spiky = kind + 0 * fraction
    index = np.where(kind < FIRST_FINE, spiky, np.where(kind < FIRST_COARSE, fine, coarse))
    return index.astype(np.uint8)


def index_of_context(kinds: NDArray[np.intp]) -> NDArray[np.uint8]:
    """[BUCKETS * 16]: the table index of each context; buckets without a kind get that of the last one."""
    padded = np.pad(kinds, (0, BUCKETS - kinds.size), mode="edge")
    return index_of_kind()[padded].reshape(-1)


def _half_of_index() -> NDArray[np.int32]:
    """[256]: half of 2**k for an index with k raw bits, added to errors so that their heads are rounded."""
    raw_bits = np.maximum(np.arange(256) - FIRST_COARSE_ROW, 0) // OCTAVE
    half: NDArray[np.int32] = ((1 << np.minimum(raw_bits, 24)) >> 1).astype(np.int32)
    return half


def _folded(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape that is coded: one slice, about square, in place of one with few voxels a plane."""
    slices, height, width = shape
    voxels = math.prod(shape)
    side = math.isqrt(voxels - 1) + 1
    if width + 2 * height + 4 * slices <= 8 * side:
        return shape
    return 1, -(-voxels // side), side


@dataclass(frozen=True, eq=False)
class _Side:
    """Side information of a slab."""

    low: int  # the least value
    span: int  # the largest less the least
    palette: NDArray[np.int32] | None = None  # the values that occur, less the least; their ranks are coded
    border: int = 0  # value beyond the slab
    predictor: Predictor = NO_PREDICTOR
    kinds: NDArray[np.intp] = field(default_factory=lambda: np.zeros(1, np.intp))  # of tables, by bucket

    @property
    def largest(self) -> int:
        """Largest value or rank that is coded."""
        return self.span if self.palette is None else self.palette.size - 1


def _side_information(coder: SymbolCoder, shape: tuple[int, ...], side: _Side | None) -> _Side:
    """Codes `side`, or decodes it if it is None, for a slab of the shape."""
    numbers = _Numbers(coder)
    low = numbers.signed(None if side is None else side.low)
    span = min(numbers.unsigned(None if side is None else side.span), MAX_SPAN)
    if span == 0:
        return _Side(low, span)
    palette = _palette(numbers, math.prod(shape), span, side)
    largest = span if palette is None else palette.size - 1
    border = min(numbers.unsigned(None if side is None else side.border), largest)
    predictor = _predictor(numbers, shape[0], None if side is None else side.predictor)
    return _Side(low, span, palette, border, predictor, _kinds(numbers, None if side is None else side.kinds))


def _palette(numbers: _Numbers, voxels: int, span: int, side: _Side | None) -> NDArray[np.int32] | None:
    given = None if side is None else side.palette
    size = numbers.unsigned(None if side is None else 0 if given is None else given.size)
    size = min(size, voxels, span + 1)
    if size < 2:
        return None
    gaps = numbers.many(size - 1, None if given is None else np.diff(given) - 1)
    palette = np.concatenate(([0], np.cumsum(np.clip(gaps, 0, span) + 1)))
    return np.minimum(palette, span).astype(np.int32)


def _predictor(numbers: _Numbers, slices: int, given: Predictor | None) -> Predictor:
    """0 for the shipped one; else 1, a bit for each candidate, then the coefficients stage by stage."""
    default = shipped().predictor
    if numbers.unsigned(None if given is None else int(given is not default)) == 0:
        return default
    mask = None
    if given is not None:
        mask = np.packbits([tap in given.taps for tap in CANDIDATES], bitorder="little")
    mask = numbers.raw(-(-len(CANDIDATES) // 8), mask).astype(np.uint8)
    chosen = np.unpackbits(mask, count=len(CANDIDATES), bitorder="little")
    taps = tuple(tap for tap, taken in zip(CANDIDATES, chosen, strict=True) if taken)
    coefficients = np.zeros((STAGES, len(taps)), np.int32)
    for stage in range(min(slices, STAGES)):
        there = np.array([-t <= stage for t, _, _ in taps], bool)
        count = int(there.sum())
        if count:
            sent = numbers.many(count, None if given is None else given.coefficients[stage, there])
            coefficients[stage, there] = np.clip(sent, -(1 << 15), 1 << 15)
    coefficients[slices:] = coefficients[min(slices, STAGES) - 1]
    return Predictor(taps, coefficients)


def _kinds(numbers: _Numbers, given: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """Each as its difference from one more than the one before."""
    count = max(1, min(numbers.unsigned(None if given is None else given.size), BUCKETS))
    steps = None if given is None else np.diff(given, prepend=-1) - 1
    steps = np.clip(numbers.many(count, steps, STEP_KIND), -KINDS, KINDS)
    kinds: NDArray[np.intp] = np.clip(np.cumsum(steps + 1) - 1, 0, KINDS - 1).astype(np.intp)
    return kinds


class _Numbers:
    """Integers of the side information: each call gives back what it is given, or what it decodes."""

    def __init__(self, coder: SymbolCoder) -> None:
        self._coder = coder

    def raw(self, n: int, given: NDArray[Any] | None) -> NDArray[np.int64]:
        """n numbers below 256."""
        values = None if given is None else given.astype(np.int64)[None]
        coded: NDArray[np.int64] = self._coder.code("byte", np.zeros((1, n), np.uint8), values)[0]
        return np.clip(coded, 0, 255)

    def unsigned(self, given: int | None) -> int:
        """LEB128, below 2**35."""
        value = 0
        for group in range(5):
            byte = None
            if given is not None:
                rest = given >> (7 * group)
                byte = np.array([rest & 127 | (128 if rest > 127 else 0)])
            coded = int(self.raw(1, byte)[0])
            value |= (coded & 127) << (7 * group)
            if coded < 128:
                break
        return value

    def signed(self, given: int | None) -> int:
        """Zigzag, of 32 bits."""
        value = self.unsigned(None if given is None else 2 * given if given >= 0 else -2 * given - 1)
        return max(-(1 << 31), min((value >> 1) ^ -(value & 1), (1 << 31) - 1))

    def many(self, n: int, given: NDArray[Any] | None, kind: int | None = None) -> NDArray[np.int64]:
        """n numbers with the tables of a kind, which is sent first unless it is told."""
        if kind is None:
            kind = int(self.raw(1, None if given is None else np.array([kind_for(given)]))[0])
        index = np.full((1, n), index_of_kind()[min(kind, KINDS - 1), 0])
        half = _half_of_index()[index]
        coded: NDArray[np.int64] = self._coder.code("voxel", index, None if given is None else given + half)
        numbers: NDArray[np.int64] = coded[0] - half[0]
        return numbers


def kind_for(values: NDArray[Any]) -> int:
    """The kind whose scale is that of the values."""
    scale = max(1.2 * float(np.abs(values).mean()), 0.25)
    return min(FIRST_FINE + round(OCTAVE * (math.log2(scale) + 3)), KINDS - 1)
