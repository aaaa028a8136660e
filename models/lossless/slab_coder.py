"""Lossless coding of slabs of integer voxels, without a network.

`wavefront` predicts the voxels of a lattice plane and says how uncertain it is; here the errors meet their
probability tables. `lossless_fit` makes the encoder's choices; they travel at the start of the slab's stream.
format/predictive.md has every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import ProbabilityTables, SymbolCoder

from .fronts import (
    FILTERS,
    FIRST_COARSE,
    LONG_FILTERS,
    MAX_REFERENCES,
    NO_FILTERS,
    UNIT,
    VARIANTS,
    Predictor,
    shipped,
)
from .prediction import _snapped, _wavefront, predict
from .side_info import MAX_SPAN, Side, _side_information
from .tables import (
    _half_of_index,
    _within_row,
    index_of_context,
    tilted_tables,
    within_tables,
)

REFITTED = (
    8,
    96,
)  # slices and rows that are coded twice, as neighbours with a bound are less noisy than the slab ...
MIN_REFITTED = 2  # ... from this bound on


@dataclass(frozen=True)
class Effort:
    """What the encoder spends; every stream says what it needs."""

    filters: int = (
        FILTERS  # the most of the rows' adaptive filters: a third of the time, if long half
    )
    far: bool = False  # neighbours farther away are tried, and what is shortest taken
    tap_cost: float = 1e-4  # bits per voxel that a neighbour must save, for the time it takes
    rows: int = 30_000  # voxels that a predictor is fitted to


FAST = Effort(filters=NO_FILTERS, tap_cost=3e-3, rows=10_000)
DEFAULT = Effort()
HIGH = Effort(filters=LONG_FILTERS, far=True, tap_cost=0.0, rows=150_000)


def encode_slab(
    x: NDArray[np.int32],
    coder: SymbolCoder,
    *,
    max_error: int = 0,
    references: Sequence[NDArray[np.int32]] = (),
    within: int = 0,
    effort: Effort = DEFAULT,
) -> NDArray[np.int32]:
    """Codes integers [K, H, W] of a range below 2**24, each to at most `max_error`; returns what is decoded.

    references: up to `MAX_REFERENCES` arrays of the same shape that the decoder has too. within: no integer differs
    by more from the first reference, which saves bits; 0: nothing is known of that. ValueError for others.
    """
    if x.ndim != 3 or x.size == 0 or x.dtype.kind not in "iu":
        raise ValueError(f"expected integer voxels [K, H, W], found {x.dtype} of shape {x.shape}")
    span = int(x.max()) - int(x.min())
    if span > MAX_SPAN:
        raise ValueError(
            f"expected values within {MAX_SPAN} of each other, found a range of {span}"
        )
    if not 0 <= max_error <= MAX_SPAN:
        raise ValueError(f"expected a largest error from 0 to {MAX_SPAN}, found {max_error}")
    shape = _folded((x.shape[0], x.shape[1], x.shape[2]))
    decoded = _encode(
        _fold(x, shape), coder, max_error, _references(references, x.shape, shape), within, effort
    )
    return _unfold(decoded, x.shape)


def _encode(
    x: NDArray[np.int32],
    coder: SymbolCoder,
    max_error: int,
    references: list[NDArray[np.int32]],
    within: int,
    effort: Effort,
) -> NDArray[np.int32]:
    from . import encoder_search as fit

    low, span = int(x.min()), int(x.max()) - int(x.min())
    if span <= 2 * max_error:
        side = Side(low + span // 2, 0)
        _side_information(coder, x.shape, side, len(references))
        return np.full(x.shape, side.low, np.int32)
    slab = (x - low).astype(np.int32)
    palette = fit.choose_palette(slab) if max_error == within == 0 else None
    if palette is not None:
        slab = palette.searchsorted(slab).astype(np.int32)
    side = Side(low, span, palette, fit.choose_border(slab), filters=min(effort.filters, FILTERS))
    beside = [side.ranks(reference) for reference in references]
    if max_error:
        side = replace(side, snap=fit.has_background(slab))
    best = math.inf
    for far in (False, True) if effort.far else (False,):
        predictor = _fitted(slab, side, max_error, beside, not within, effort, far)
        for filters in range(min(effort.filters, FILTERS), effort.filters + 1):
            tried = replace(side, predictor=predictor, filters=filters)
            found = predict(
                slab, tried, max_error, beside, centre=references[0] - low if within else None
            )
            tried = replace(tried, kinds=fit.choose_kinds(found.context, found.error))
            bits = fit.bits(found, tried.kinds) if effort.far else 0.0
            if bits < best:
                best, chosen, predicted = bits, tried, found
    found, side = predicted, chosen
    if not within:
        side = replace(
            side, tilts=fit.choose_tilts(index_of_context(side.kinds)[found.context], found.error)
        )
    _side_information(coder, x.shape, side, len(references))
    tables, index_of = _voxel_tables(side)
    index: NDArray[Any] = index_of[found.context]
    error = found.error
    if within:
        index, error, tables = (
            _within_row(index, found.shift, within),
            error + found.shift,
            within_tables(within),
        )
    elif side.kinds.max() >= FIRST_COARSE:
        error = error + _half_of_index()[index_of & 255][found.context]
    coder.code_calls(tables, index, error, found.sizes)
    return side.values(found.decoded)


def _fitted(
    slab: NDArray[np.int32],
    side: Side,
    max_error: int,
    references: list[NDArray[np.int32]],
    centre: bool,
    effort: Effort,
    far: bool,
) -> Predictor:
    """centre: whether a reference's voxel in the very place counts; with a bound, what it says is in the tables."""
    from . import encoder_search as fit

    def fitted(
        known: NDArray[np.int32],
        target: NDArray[np.int32],
        beside: list[NDArray[np.int32]],
        centre: bool,
    ) -> Predictor:
        return fit.fit_predictor(
            known,
            target,
            references=beside,
            centre=centre,
            tap_cost=effort.tap_cost,
            rows=effort.rows,
            far=far,
        )

    predictor = fitted(slab, slab, references, centre)
    if max_error < MIN_REFITTED:
        return predictor
    starts = [max(0, (n - most) // 2) for n, most in zip(slab.shape, REFITTED, strict=False)]
    middle = tuple(slice(start, start + most) for start, most in zip(starts, REFITTED, strict=True))
    part, *near = (np.ascontiguousarray(array[middle]) for array in (slab, *references))
    coarse = predict(part, replace(side, predictor=predictor), max_error, near).decoded
    return fitted(coarse, part, near, True)


def decode_slab(
    shape: tuple[int, int, int],
    coder: SymbolCoder,
    *,
    max_error: int = 0,
    references: Sequence[NDArray[np.int32]] = (),
    within: int = 0,
) -> NDArray[np.int32]:
    """Integers [K, H, W]. From a damaged stream they may be wrong, which only checksums tell."""
    folded = _folded(shape)
    return _unfold(
        _decode(folded, coder, max_error, _references(references, shape, folded), within), shape
    )


def _decode(
    shape: tuple[int, ...],
    coder: SymbolCoder,
    max_error: int,
    references: list[NDArray[np.int32]],
    within: int,
) -> NDArray[np.int32]:
    side = _side_information(coder, shape, None, len(references))
    if side.span == 0:
        return np.full(shape, side.low, np.int32)
    slab = np.empty(shape, np.int32)
    flat = slab.reshape(-1)
    tables, index_of = _voxel_tables(side)
    half_of = _half_of_index()
    step = 2 * max_error + 1
    centres = (references[0].astype(np.int64) - side.low).reshape(-1) if within else None
    wavefront = _wavefront(shape, side, [side.ranks(reference) for reference in references])
    for plane in wavefront.planes():
        if centres is not None:
            centre = centres[plane.voxels]
            shift = ((plane.nearest - centre) * plane.sign).astype(np.int64)
            row = _within_row(index_of[plane.context], shift, within)
            values = np.clip(
                centre + plane.sign * coder.code(within_tables(within), row[None], None)[0],
                0,
                side.largest,
            )
            flat[plane.voxels] = values
            wavefront.put(values)
            continue
        index = index_of[plane.context if max_error == 0 else plane.context & ~(UNIT - 1)]
        error = coder.code(tables, index[None], None)[0] - half_of[index & 255]
        nearest = plane.nearest
        if max_error:
            nearest = _snapped(nearest, side, max_error)
            error = np.clip(error, -MAX_SPAN, MAX_SPAN) * step
        values = (nearest + plane.sign * error).clip(0.0, float(side.largest))
        flat[plane.voxels] = values
        wavefront.put(values)
    return side.values(slab)


def _voxel_tables(side: Side) -> tuple[ProbabilityTables, NDArray[Any]]:
    """The tables for the voxels, and their index of each context."""
    index_of = index_of_context(side.kinds)
    if not side.tilts.any():
        return shipped().tables["voxel"], index_of.astype(np.uint8)
    variant = np.arange(VARIANTS)
    upright = ~side.tilts[(variant - 1) // 2].any(
        axis=1
    )  # all alike, so that they are coded together
    block = np.where(upright, variant[upright].min(initial=VARIANTS), variant)
    return tilted_tables(side.tilts), (
        block.astype(np.uint16)[:, None] * np.uint16(256) + (index_of & 255).reshape(VARIANTS, -1)
    ).reshape(-1)


def _fold(x: NDArray[np.int32], shape: tuple[int, int, int]) -> NDArray[np.int32]:
    return np.pad(x.reshape(-1), (0, math.prod(shape) - x.size), mode="edge").reshape(shape)


def _unfold(folded: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.int32]:
    return folded.reshape(-1)[: math.prod(shape)].reshape(shape)


def _references(
    references: Sequence[NDArray[np.int32]], shape: tuple[int, ...], folded: tuple[int, ...]
) -> list[NDArray[np.int32]]:
    if len(references) > MAX_REFERENCES or any(
        reference.shape != shape for reference in references
    ):
        found = [reference.shape for reference in references]
        raise ValueError(
            f"expected at most {MAX_REFERENCES} references of shape {shape}, found {found}"
        )
    return [_fold(reference, (folded[0], folded[1], folded[2])) for reference in references]


def _folded(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape that is coded: one slice, about square, in place of one with few voxels a plane."""
    slices, height, width = shape
    voxels = math.prod(shape)
    side = math.isqrt(voxels - 1) + 1
    if width + 2 * height + 4 * slices <= 8 * side:
        return shape
    return 1, -(-voxels // side), side
