"""Vectorized prediction of a slab, for an encoder without filters and bound: it knows all voxels.

The states and errors of `fronts` in a fraction of the time: slice by slice, some rows at a time, in
32-bit integers where the values allow it. format/predictive.md has the names (X, E, P, S, N) and
the values beyond the slab.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fronts import (
    CANDIDATES,
    COEFFICIENT_BITS,
    ERRORS,
    GRADIENTS,
    LEVEL_LIMITS,
    MIN_RATIO,
    SCALE_BITS,
    STAGES,
    UNIT,
    VARIANT_STATES,
    Predictor,
    Tap,
    shipped,
)

Integers = NDArray[Any]

# Voxels that are worked on at once: intermediate arrays stay in the cache.
_AT_ONCE = 1 << 13
# Columns around a slice, and rows above it.
_MARGIN = max(max(abs(i), abs(j)) for _, i, j in CANDIDATES)
# Rows below a slice.
_BELOW = max(i for _, i, _ in CANDIDATES) + 2
# Slices before the slab.
_BEFORE = 2
# Offsets from a voxel to the one that it is compared with.
_WEST, _NORTH, _NORTH_EAST = (0, -1), (-1, 0), (-1, 1)
_UNIT_BITS = UNIT.bit_length() - 1


class _Term(NamedTuple):
    """One term of a weighted sum: factor * values[i + shift], values [rows * columns]."""

    values: Integers
    shift: int
    factor: int


class _Slice(NamedTuple):
    """The features of scales: absolute errors and differences from neighbours, [rows * columns]."""

    error: Integers
    west: Integers
    north: Integers
    north_east: Integers

    @classmethod
    def of(cls, x: Integers, errors: Integers) -> _Slice:
        flat = x.reshape(-1)
        steps = []
        for i, j in (_WEST, _NORTH, _NORTH_EAST):
            back = -i * x.shape[1] - j
            step = np.zeros_like(flat)
            np.subtract(flat[back:], flat[:-back], out=step[back:])
            steps.append(np.abs(step, out=step))
        return cls(errors.reshape(-1), *steps)

    def step(self, one: Tap, other: Tap) -> tuple[Integers, Tap]:
        """abs(difference) of two neighbours in a slice: its array, and at which of them it is."""
        for values, neighbours in (
            (self.west, _WEST),
            (self.north, _NORTH),
            (self.north_east, _NORTH_EAST),
        ):
            for first, second in ((one, other), (other, one)):
                if (second[1] - first[1], second[2] - first[2]) == neighbours:
                    return values, first
        raise AssertionError(f"{one} and {other} are no neighbours")


def states(
    slab: NDArray[np.int32],
    top: int,
    border: int,
    predictor: Predictor,
    references: Sequence[NDArray[np.int32]],
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """The states of the voxels and their errors as they are coded, [K, H, W]; see `fronts.Front`.

    slab: 0 ... top; border: the value beyond it; references: of its shape, in the same range.
    """
    slices, height, width = slab.shape
    weights = shipped().scale_weights.astype(int).tolist()
    dtype = _sum_type(top, predictor, weights)
    columns = width + 2 * _MARGIN
    x = np.full((_BEFORE + slices, _MARGIN + height + _BELOW, columns), border, dtype)
    x[_BEFORE:, _MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width] = slab
    _continue(x[_BEFORE:], height, width)
    edges = (_BEFORE, 1), (_MARGIN, _BELOW), (_MARGIN, _MARGIN)
    padded = [np.pad(reference.astype(dtype), edges, mode="edge") for reference in references]
    state, error = np.empty(slab.shape, np.int16), np.empty(slab.shape, np.int32)
    before = _Slice.of(x[_BEFORE - 1], np.zeros_like(x[0]))
    inside = slice(_MARGIN, _MARGIN + height), slice(_MARGIN, _MARGIN + width)
    prediction = np.empty((height, width), dtype)
    for t in range(slices):
        terms = _prediction_terms(predictor, t, x, padded)
        bits = COEFFICIENT_BITS - _UNIT_BITS
        for rows in _rows(height, columns):
            total = _sum(terms, rows, columns, 1 << (bits - 1), dtype)
            total >>= bits
            np.clip(total, 0, UNIT * top, out=total)
            prediction[rows] = total.reshape(-1, columns)[:, :width]
        errors = np.zeros_like(x[0])
        np.subtract(slab[t] * dtype(UNIT), prediction, out=errors[inside])
        _continue(errors[None], height, width)
        now = _Slice.of(x[t + _BEFORE], np.abs(errors, out=errors))
        terms = _features(now, before, weights[min(t, 1)], columns)
        for rows in _rows(height, columns):
            scale = _sum(terms, rows, columns, 1 << SCALE_BITS, dtype)
            scale >>= SCALE_BITS
            scale = np.ascontiguousarray(scale.reshape(-1, columns)[:, :width])
            state[t, rows], error[t, rows] = _coded(scale, prediction[rows], slab[t, rows])
        before = now
    return state, error


def _sum_type(top: int, predictor: Predictor, weights: list[list[int]]) -> Any:
    """The type that holds the sums of predictions and scales."""
    largest = max(
        int(np.abs(predictor.coefficients).sum(axis=1).max()),
        UNIT * max(sum(map(abs, row)) for row in weights),
    )
    return np.int32 if (top + 1) * largest + (1 << SCALE_BITS) < 1 << 31 else np.int64


def _prediction_terms(
    predictor: Predictor, t: int, x: Integers, references: list[Integers]
) -> list[_Term]:
    """The terms of the least-squares prediction in slice t of padded slabs."""
    columns = x.shape[-1]
    coefficients = predictor.coefficients[min(t, STAGES - 1)].tolist()
    known = [(x[t + _BEFORE + dt], i, j) for dt, i, j in predictor.taps]
    known += [(references[r][t + _BEFORE + dt], i, j) for r, (dt, i, j) in predictor.reference_taps]
    return [
        _Term(values.reshape(-1), i * columns + j, c)
        for (values, i, j), c in zip(known, coefficients, strict=True)
        if c
    ]


def _continue(values: Integers, height: int, width: int) -> None:
    """Fill the margins of slices [n, rows, columns].

    Right of them and below them are their last voxels, left of a row the first of the row above.
    """
    left, right, bottom = _MARGIN, _MARGIN + width, _MARGIN + height
    values[:, bottom:, left:right] = values[:, bottom - 1 : bottom, left:right]
    values[:, _MARGIN:, right:] = values[:, _MARGIN:, right - 1 : right]
    values[:, _MARGIN + 1 :, :left] = values[:, _MARGIN:-1, left : left + 1]


def _rows(height: int, columns: int) -> list[slice]:
    at_once = max(1, _AT_ONCE // columns)
    return [slice(first, min(first + at_once, height)) for first in range(0, height, at_once)]


def _features(now: _Slice, before: _Slice, weights: list[int], columns: int) -> list[_Term]:
    """The terms of the local scale."""
    terms = [
        _Term((now, before)[-t].error, i * columns + j, w)
        for (t, i, j), w in zip(ERRORS, weights, strict=False)
    ]
    for (one, other), w in zip(GRADIENTS, weights[len(ERRORS) :], strict=True):
        values, (_, i, j) = (now, before)[-one[0]].step(one, other)
        terms.append(_Term(values, i * columns + j, UNIT * w))
    return [term for term in terms if term.factor]


def _sum(terms: list[_Term], rows: slice, columns: int, start: int, dtype: Any) -> Integers:
    """`start` plus the terms, for all columns from the first voxel on, [rows * columns]."""
    first = (_MARGIN + rows.start) * columns + _MARGIN
    size = (rows.stop - rows.start) * columns
    total, product = np.full(size, start, dtype), np.empty(size, dtype)
    for values, shift, factor in terms:
        np.multiply(values[first + shift : first + shift + size], factor, out=product)
        total += product
    return total


def _coded(
    scale: Integers, prediction: Integers, x: NDArray[np.int32]
) -> tuple[Integers, Integers]:
    """Context and error of voxels."""
    nearest = (prediction + UNIT // 2) >> _UNIT_BITS
    fraction = prediction - (nearest << _UNIT_BITS)
    mirrored = fraction >> 31  # -1 where the prediction is below the nearest integer, else 0
    context = _octaves(scale)
    ratio = _octaves(prediction + 1)
    ratio -= context
    np.clip(ratio - MIN_RATIO, 0, LEVEL_LIMITS[-1] - MIN_RATIO, out=ratio)
    ratio -= mirrored * VARIANT_STATES.shape[1]
    state = VARIANT_STATES.astype(scale.dtype).reshape(-1)[ratio]
    state += context << _UNIT_BITS
    state += (fraction ^ mirrored) - mirrored
    error = x - nearest
    error ^= mirrored
    error -= mirrored
    return state, error


def _octaves(values: Integers) -> Integers:
    """As in `fronts`; 32-bit integers are below 2**24 here, which a float of 32 bits holds."""
    if values.dtype == np.int32:
        return (values.astype(np.float32).view(np.int32) >> 21) - (127 << 2)
    return (values.astype(np.float64).view(np.int64) >> 50) - (1023 << 2)


def front_order(shape: tuple[int, int, int]) -> tuple[NDArray[np.intp], list[int]]:
    """Positions of the voxels of a slab [K, H, W] in coding order, and the sizes of the fronts."""
    slices, height, width = shape
    t, i = (axis.reshape(-1) for axis in np.indices((slices, height)))
    lanes = np.lexsort((t, i + 2 * t))
    begins = (4 * t + 2 * i)[lanes]  # fronts, in ascending order
    origin = ((t * height + i) * width - 4 * t - 2 * i)[lanes]
    fronts = np.arange(int(begins[-1]) + width)
    first, stop = begins.searchsorted(fronts - width, "right"), begins.searchsorted(fronts, "right")
    order, end = np.empty(math.prod(shape), np.intp), 0
    for n, a, b in zip(fronts.tolist(), first.tolist(), stop.tolist(), strict=True):
        np.add(origin[a:b], n, out=order[end : end + b - a])
        end += b - a
    sizes = stop - first
    return order, sizes[sizes > 0].tolist()
