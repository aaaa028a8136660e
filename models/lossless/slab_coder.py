"""Lossless coding of slabs of integer voxels, without a network.

`fronts` predicts the voxels of a front and their uncertainty; here the errors meet their
probability tables. `encoder_search` makes the encoder's choices, which are sent as side information
at the start of the slab's stream. format/predictive.md has every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
from .prediction import Predicted, front_predictor, predict, snapped
from .side_info import MAX_SPAN, Side, code_side_information
from .tables import (
    half_of_index,
    index_of_state,
    skewed_tables,
    within_row,
    within_tables,
)

if TYPE_CHECKING:
    from .encoder_search import FitOptions

# Slices and rows that are coded twice to fit the predictor of a slab with a bound: its neighbours
# are less noisy than the slab.
REFITTED = (8, 96)
# The bound from which on a predictor is fitted twice.
MIN_REFITTED = 2


@dataclass(frozen=True)
class Effort:
    """What the encoder tries; any stream decodes."""

    # The longest adaptive filters of the rows: they take a third of the time, long ones half.
    filters: int = FILTERS
    far: bool = False  # Whether farther neighbours are tried, and the shortest result taken.
    tap_cost: float = 1e-4  # Bits per voxel that a neighbour must save, for the time it takes.
    rows: int = 30_000  # Voxels that a predictor is fitted to.


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
    """Code integers [K, H, W] of a range below 2**24; returns what is decoded.

    max_error: the largest error of a value. references: up to `MAX_REFERENCES` arrays of the same
    shape that the decoder has too. within: no integer differs by more from the first reference,
    which saves bits; 0: nothing is known of that. ValueError for other arguments.
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
        code_side_information(coder, x.shape, side, len(references))
        return np.full(x.shape, side.low, np.int32)
    slab = (x - low).astype(np.int32)
    palette = fit.choose_palette(slab) if max_error == within == 0 else None
    if palette is not None:
        slab = palette.searchsorted(slab).astype(np.int32)
    side = Side(low, span, palette, fit.choose_border(slab), filters=min(effort.filters, FILTERS))
    ranks = [side.ranks(reference) for reference in references]
    if max_error:
        side = replace(side, snap=fit.has_background(slab))
    centre = references[0] - low if within else None
    side, predicted = _search(slab, side, max_error, ranks, centre, effort)
    if not within:
        index = index_of_state(side.distributions)[predicted.state]
        side = replace(side, skews=fit.choose_skews(index, predicted.error))
    code_side_information(coder, x.shape, side, len(references))
    _code_errors(coder, side, predicted, within)
    return side.values(predicted.decoded)


def _search(
    slab: NDArray[np.int32],
    side: Side,
    max_error: int,
    references: list[NDArray[np.int32]],
    centre: NDArray[np.int32] | None,
    effort: Effort,
) -> tuple[Side, Predicted]:
    """The predictor, filters and distributions of the fewest bits, and the prediction with them.

    centre: see `predict`.
    """
    from . import encoder_search as fit

    best = math.inf
    for far in (False, True) if effort.far else (False,):
        options = fit.FitOptions(centre is None, effort.tap_cost, effort.rows, far)
        predictor = _fitted(slab, side, max_error, references, options)
        for filters in range(min(effort.filters, FILTERS), effort.filters + 1):
            tried = replace(side, predictor=predictor, filters=filters)
            result = predict(slab, tried, max_error, references, centre=centre)
            distributions = fit.choose_distributions(result.state, result.error)
            bits = fit.bits(result, distributions) if effort.far else 0.0
            if bits < best:
                best, chosen = bits, (replace(tried, distributions=distributions), result)
    return chosen


def _code_errors(coder: SymbolCoder, side: Side, predicted: Predicted, within: int) -> None:
    tables, index_of = _voxel_tables(side)
    index: NDArray[Any] = index_of[predicted.state]
    error = predicted.error
    if within:
        index = within_row(index, predicted.shift, within)
        error, tables = error + predicted.shift, within_tables(within)
    elif side.distributions.max() >= FIRST_COARSE:
        error = error + half_of_index()[index_of & 255][predicted.state]
    coder.code_calls(tables, index, error, predicted.sizes)


def _fitted(
    slab: NDArray[np.int32],
    side: Side,
    max_error: int,
    references: list[NDArray[np.int32]],
    options: FitOptions,
) -> Predictor:
    """The predictor of a slab; with a bound fitted again to what a first one decodes."""
    from . import encoder_search as fit

    predictor = fit.fit_predictor(slab, references=references, options=options)
    if max_error < MIN_REFITTED:
        return predictor
    starts = [max(0, (n - size) // 2) for n, size in zip(slab.shape, REFITTED, strict=False)]
    middle = tuple(slice(start, start + size) for start, size in zip(starts, REFITTED, strict=True))
    part, *near = (np.ascontiguousarray(array[middle]) for array in (slab, *references))
    coarse = predict(part, replace(side, predictor=predictor), max_error, near).decoded
    options = replace(options, centre=True)
    return fit.fit_predictor(coarse, part, references=near, options=options)


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
    side = code_side_information(coder, shape, None, len(references))
    if side.span == 0:
        return np.full(shape, side.low, np.int32)
    slab = np.empty(shape, np.int32)
    flat = slab.reshape(-1)
    tables, index_of = _voxel_tables(side)
    half_of = half_of_index()
    step = 2 * max_error + 1
    centres = (references[0].astype(np.int64) - side.low).reshape(-1) if within else None
    walk = front_predictor(shape, side, [side.ranks(reference) for reference in references])
    for front in walk.fronts():
        if centres is not None:
            centre = centres[front.voxels]
            shift = ((front.nearest - centre) * front.sign).astype(np.int64)
            row = within_row(index_of[front.state], shift, within)
            values = np.clip(
                centre + front.sign * coder.code(within_tables(within), row[None], None)[0],
                0,
                side.largest,
            )
            flat[front.voxels] = values
            walk.put(values)
            continue
        index = index_of[front.state if max_error == 0 else front.state & ~(UNIT - 1)]
        error = coder.code(tables, index[None], None)[0] - half_of[index & 255]
        nearest = front.nearest
        if max_error:
            nearest = snapped(nearest, side, max_error)
            error = np.clip(error, -MAX_SPAN, MAX_SPAN) * step
        values = (nearest + front.sign * error).clip(0.0, float(side.largest))
        flat[front.voxels] = values
        walk.put(values)
    return side.values(slab)


def _voxel_tables(side: Side) -> tuple[ProbabilityTables, NDArray[Any]]:
    """The tables for the voxels, and their index of each state."""
    index_of = index_of_state(side.distributions)
    if not side.skews.any():
        return shipped().tables["voxel"], index_of.astype(np.uint8)
    variant = np.arange(VARIANTS)
    upright = ~side.skews[(variant - 1) // 2].any(
        axis=1
    )  # all alike, so that they are coded together
    block = np.where(upright, variant[upright].min(initial=VARIANTS), variant)
    return skewed_tables(side.skews), (
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
        shapes = [reference.shape for reference in references]
        raise ValueError(
            f"expected at most {MAX_REFERENCES} references of shape {shape}, found {shapes}"
        )
    return [_fold(reference, (folded[0], folded[1], folded[2])) for reference in references]


def _folded(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape that is coded: one slice, about square, in place of one with few voxels a front."""
    slices, height, width = shape
    voxels = math.prod(shape)
    side = math.isqrt(voxels - 1) + 1
    if width + 2 * height + 4 * slices <= 8 * side:
        return shape
    return 1, -(-voxels // side), side
