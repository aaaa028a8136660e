"""Lossless coding of slabs of integer voxels, without a network.

`wavefront` predicts the voxels of a lattice plane and says how uncertain it is; here the errors meet their
probability tables. `lossless_fit` makes the encoder's choices; they travel at the start of the slab's stream.
FORMAT.md, "Lattice coder", has every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import whole
from .wavefront import (
    BUCKETS,
    CANDIDATES,
    FILTERS,
    FIRST_COARSE,
    FIRST_COARSE_ROW,
    FIRST_FINE,
    FRACTIONS,
    HEAD_MAX,
    KINDS,
    LEVELS,
    LONG_FILTERS,
    MAX_REFERENCES,
    NO_FILTERS,
    NODES,
    OCTAVE,
    REFERENCE_CANDIDATES,
    STAGES,
    UNIT,
    VARIANTS,
    Predictor,
    TableSet,
    Wavefront,
    shipped,
)

MAX_SPAN = (1 << 24) - 1
REFITTED = 8, 96  # slices and rows that are coded twice, as neighbours with a bound are less noisy than the slab ...
LEAST_REFITTED = 2  # ... from this bound on
STEP_KIND = FIRST_FINE + 3 * OCTAVE  # of differences between kinds: a scale of 1
TILT_OCTAVES = 4  # a probability is multiplied by at most 2**4
NO_TILTS = np.zeros((LEVELS, NODES), np.int32)
NO_PREDICTOR = Predictor((), np.zeros((STAGES, 0), np.int32))


@dataclass(frozen=True)
class Effort:
    """What the encoder spends; every stream says what it needs."""

    filters: int = FILTERS  # the most of the rows' adaptive filters: a third of the time, if long half
    far: bool = False  # neighbours farther away are tried, and what is shortest taken
    tap_cost: float = 1e-4  # bits per voxel that a neighbour must save, for the time it takes
    rows: int = 30_000  # voxels that a predictor is fitted to


FAST = Effort(filters=NO_FILTERS, tap_cost=3e-3, rows=10_000)
DEFAULT = Effort()
HIGH = Effort(filters=LONG_FILTERS, far=True, tap_cost=0.0, rows=150_000)


class SymbolCoder(Protocol):
    def code(self, table_set: str, index: NDArray[Any], values: NDArray[Any] | None) -> NDArray[np.int64]:
        """index [1, n], values [1, n] to encode or None to decode -> the values."""

    def code_calls(self, table_set: str, index: NDArray[Any], values: NDArray[Any], sizes: Sequence[int]) -> None:
        """index [n], values [n] to encode: the first so many in a call of their own, and so on."""

    def add(self, table_set: str, tables: TableSet) -> None:
        """Tables of a name of its own."""


def __getattr__(name: str) -> dict[str, TableSet]:
    if name == "TABLES":  # loaded when first asked for
        return shipped().tables
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        raise ValueError(f"expected values within {MAX_SPAN} of each other, found a range of {span}")
    if not 0 <= max_error <= MAX_SPAN:
        raise ValueError(f"expected a largest error from 0 to {MAX_SPAN}, found {max_error}")
    shape = _folded((x.shape[0], x.shape[1], x.shape[2]))
    decoded = _encode(_fold(x, shape), coder, max_error, _references(references, x.shape, shape), within, effort)
    return _unfold(decoded, x.shape)


def _encode(
    x: NDArray[np.int32],
    coder: SymbolCoder,
    max_error: int,
    references: list[NDArray[np.int32]],
    within: int,
    effort: Effort,
) -> NDArray[np.int32]:
    from . import lossless_fit as fit

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
            found = predict(slab, tried, max_error, beside, centre=references[0] - low if within else None)
            tried = replace(tried, kinds=fit.choose_kinds(found.context, found.error))
            bits = fit.bits(found, tried.kinds) if effort.far else 0.0
            if bits < best:
                best, chosen, predicted = bits, tried, found
    found, side = predicted, chosen
    if not within:
        side = replace(side, tilts=fit.choose_tilts(index_of_context(side.kinds)[found.context], found.error))
    _side_information(coder, x.shape, side, len(references))
    table_set, index_of = _prepared(coder, side)
    index: NDArray[Any] = index_of[found.context]
    error = found.error
    if within:
        index, error, table_set = _within_row(index, found.shift, within), error + found.shift, "within"
    elif side.kinds.max() >= FIRST_COARSE:
        error = error + _half_of_index()[index_of & 255][found.context]
    coder.code_calls(table_set, index, error, found.sizes)
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
    from . import lossless_fit as fit

    def fitted(known: NDArray[np.int32], target: NDArray[np.int32], beside: list[NDArray[np.int32]], centre: bool) -> Predictor:
        return fit.fit_predictor(
            known, target, references=beside, centre=centre, tap_cost=effort.tap_cost, rows=effort.rows, far=far
        )

    predictor = fitted(slab, slab, references, centre)
    if max_error < LEAST_REFITTED:
        return predictor
    starts = [max(0, (n - most) // 2) for n, most in zip(slab.shape, REFITTED, strict=False)]
    middle = tuple(slice(start, start + most) for start, most in zip(starts, REFITTED, strict=True))
    part, *near = (np.ascontiguousarray(array[middle]) for array in (slab, *references))
    coarse = predict(part, replace(side, predictor=predictor), max_error, near).decoded
    return fitted(coarse, part, near, True)


@dataclass(frozen=True, eq=False)
class Predicted:
    """A slab [K, H, W] after prediction, in the order of its planes."""

    context: NDArray[np.int16]  # [voxels]
    error: NDArray[np.int32]  # [voxels], in steps of 2 * max_error + 1
    sizes: list[int]  # voxels of each plane
    decoded: NDArray[np.int32]  # [K, H, W]
    shift: NDArray[np.int64]  # [voxels], from the centre to the integer next to the prediction, as errors are coded


def predict(
    slab: NDArray[np.int32],
    side: Side,
    max_error: int = 0,
    references: Sequence[NDArray[np.int32]] = (),
    *,
    centre: NDArray[np.int32] | None = None,
) -> Predicted:
    """Contexts and errors of a slab [K, H, W]; of `side` all but its kinds is used. centre: the shift from it is told too."""
    if side.filters == NO_FILTERS and max_error == 0 and centre is None:
        contexts, errors = whole.contexts(slab, side.largest, side.border, side.predictor, references)
        order, counts = whole.plane_order((slab.shape[0], slab.shape[1], slab.shape[2]))
        return Predicted(contexts.reshape(-1)[order], errors.reshape(-1)[order], counts, slab, np.zeros(0, np.int64))
    flat = slab.reshape(-1)
    context, error = np.empty(flat.size, np.int16), np.empty(flat.size, np.int32)
    centres = None if centre is None else centre.reshape(-1)
    shift = np.zeros(0 if centre is None else flat.size, np.int64)
    decoded = slab if max_error == 0 else np.empty_like(flat)
    sizes: list[int] = []
    start = 0
    step = 2 * max_error + 1
    wavefront = _wavefront(slab.shape, side, references)
    for plane in wavefront.planes():
        values = flat[plane.voxels].astype(np.float64)
        end = start + values.size
        context[start:end] = plane.context
        if centres is not None:
            shift[start:end] = (plane.nearest - centres[plane.voxels]) * plane.sign
        if max_error == 0:
            error[start:end] = (values - plane.nearest) * plane.sign
        else:
            nearest = _snapped(plane.nearest, side, max_error)
            steps = np.floor((values - nearest + (max_error + 0.5)) * (1 / step))
            error[start:end] = steps * plane.sign
            values = np.clip(nearest + steps * step, 0, side.largest)
            decoded[plane.voxels] = values
        wavefront.put(values)
        sizes.append(end - start)
        start = end
    if max_error:
        context &= ~(UNIT - 1)
    return Predicted(context, error, sizes, decoded.reshape(slab.shape), shift)


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
    return _unfold(_decode(folded, coder, max_error, _references(references, shape, folded), within), shape)


def _decode(
    shape: tuple[int, ...], coder: SymbolCoder, max_error: int, references: list[NDArray[np.int32]], within: int
) -> NDArray[np.int32]:
    side = _side_information(coder, shape, None, len(references))
    if side.span == 0:
        return np.full(shape, side.low, np.int32)
    slab = np.empty(shape, np.int32)
    flat = slab.reshape(-1)
    table_set, index_of = _prepared(coder, side)
    half_of = _half_of_index()
    step = 2 * max_error + 1
    centres = (references[0].astype(np.int64) - side.low).reshape(-1) if within else None
    wavefront = _wavefront(shape, side, [side.ranks(reference) for reference in references])
    for plane in wavefront.planes():
        if centres is not None:
            centre = centres[plane.voxels]
            shift = ((plane.nearest - centre) * plane.sign).astype(np.int64)
            row = _within_row(index_of[plane.context], shift, within)
            values = np.clip(centre + plane.sign * coder.code("within", row[None], None)[0], 0, side.largest)
            flat[plane.voxels] = values
            wavefront.put(values)
            continue
        index = index_of[plane.context if max_error == 0 else plane.context & ~(UNIT - 1)]
        error = coder.code(table_set, index[None], None)[0] - half_of[index & 255]
        nearest = plane.nearest
        if max_error:
            nearest = _snapped(nearest, side, max_error)
            error = np.clip(error, -MAX_SPAN, MAX_SPAN) * step
        values = (nearest + plane.sign * error).clip(0.0, float(side.largest))
        flat[plane.voxels] = values
        wavefront.put(values)
    return side.values(slab)


def _prepared(coder: SymbolCoder, side: Side) -> tuple[str, NDArray[Any]]:
    """The table set for the voxels, and its index of each context."""
    index_of = index_of_context(side.kinds)
    if not side.tilts.any():
        return "voxel", index_of.astype(np.uint8)
    coder.add("tilted", tilted_tables(side.tilts))
    variant = np.arange(VARIANTS)
    upright = ~side.tilts[(variant - 1) // 2].any(axis=1)  # all alike, so that they are coded together
    block = np.where(upright, variant[upright].min(initial=VARIANTS), variant)
    return "tilted", (block.astype(np.uint16)[:, None] * np.uint16(256) + (index_of & 255).reshape(VARIANTS, -1)).reshape(-1)


# 2**12 times 2**(n / 8)
_EIGHTHS = np.array([4096, 4467, 4871, 5312, 5793, 6317, 6889, 7512], np.int64)


def tilted_tables(tilts: NDArray[np.integer]) -> TableSet:
    """The tables of "voxel" with every probability times 2**(tilt / 8) at its node; tilts [LEVELS, NODES]."""
    shipped_tables = shipped()
    voxel = shipped_tables.tables["voxel"]
    weights = voxel.weights.astype(np.int64)
    scaled = weights[FIRST_FINE:]
    free = (1 << 24) - weights.shape[1]
    variants = [tilts[-1]]
    for tilt in tilts[:-1]:
        variants += [tilt, tilt[::-1]]
    blocks = []
    for tilt in variants:
        octave, eighth = np.divmod(tilt.astype(np.int64), 8)
        factor = (_EIGHTHS[eighth] << TILT_OCTAVES) >> (TILT_OCTAVES - octave)
        tilted = scaled.copy()
        tilted[:, :-1] = tilted[:, :-1] * factor[shipped_tables.places[FIRST_FINE:]] >> 12
        whole = 1 + tilted * free // tilted.sum(axis=1, keepdims=True)
        rows = np.arange(len(whole))
        whole[rows, whole.argmax(axis=1)] += (1 << 24) - whole.sum(axis=1)
        blocks.append(np.concatenate([weights[:FIRST_FINE], whole]))
    return TableSet(np.concatenate(blocks).astype(np.uint32), voxel.low, voxel.octave, VARIANTS)


WITHIN_MOST = 16  # the largest bound that has tables of its own
_WITHIN_BEYOND = 4  # predictions farther outside count as these


def within_tables(within: int) -> TableSet:
    """Tables for integers within so much of a known one: those of "voxel", moved to the prediction and cut off.

    Row: (prediction less the known one, both mirrored if the sign is negative) x table index; see `_within_row`.
    """
    voxel = shipped().tables["voxel"].weights.astype(np.int64)
    indices = np.maximum(np.arange(_within_indices(within)), 1)
    beyond = np.maximum(indices - FIRST_COARSE_ROW, 0)
    row = np.where(indices < FIRST_COARSE_ROW, indices, FIRST_COARSE_ROW + beyond % OCTAVE)[None, :, None]
    shift = np.arange(-within - _WITHIN_BEYOND, within + _WITHIN_BEYOND + 1)[:, None, None]
    offset = np.arange(-within, within + 1) - shift
    raw_bits = (beyond // OCTAVE)[None, :, None]
    column = np.clip((offset + ((1 << raw_bits) >> 1)) >> raw_bits, -HEAD_MAX, HEAD_MAX) + HEAD_MAX
    weights = voxel[row, column]
    free = (1 << 24) - (2 * within + 2)
    whole = 1 + weights * free // weights.sum(axis=-1, keepdims=True)
    whole = whole.reshape(-1, 2 * within + 1)
    rows = np.arange(len(whole))
    whole[rows, whole.argmax(axis=1)] += (1 << 24) - 1 - whole.sum(axis=1)
    return TableSet(np.pad(whole, ((0, 0), (0, 1)), constant_values=1).astype(np.uint32), -within, 0)


def _within_indices(within: int) -> int:
    """Table indices that are told apart; beyond, all integers are about as likely."""
    return FIRST_COARSE_ROW + OCTAVE * (within.bit_length() + 2)


def _within_row(index: NDArray[np.uint8], shift: NDArray[np.int64], within: int) -> NDArray[np.uint16]:
    reach = within + _WITHIN_BEYOND
    indices = _within_indices(within)
    place = np.clip(shift, -reach, reach) + reach
    rows: NDArray[np.uint16] = (place * indices + np.minimum(index, indices - 1)).astype(np.uint16)
    return rows


def _wavefront(shape: tuple[int, ...], side: Side, references: Sequence[NDArray[np.int32]]) -> Wavefront:
    slices, height, width = shape
    return Wavefront(
        (slices, height, width),
        side.largest,
        side.border,
        side.predictor,
        shipped().scale_weights,
        references,
        adaptive=side.filters,
    )


def _snapped(nearest: NDArray[np.float64], side: Side, max_error: int) -> NDArray[np.float64]:
    """With a bound, predictions that the least value would do for as well are taken for it: it stays exact."""
    return np.where(nearest <= max_error, 0.0, nearest) if side.snap else nearest


def _fold(x: NDArray[np.int32], shape: tuple[int, int, int]) -> NDArray[np.int32]:
    return np.pad(x.reshape(-1), (0, math.prod(shape) - x.size), mode="edge").reshape(shape)


def _unfold(folded: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.int32]:
    return folded.reshape(-1)[: math.prod(shape)].reshape(shape)


def _references(
    references: Sequence[NDArray[np.int32]], shape: tuple[int, ...], folded: tuple[int, ...]
) -> list[NDArray[np.int32]]:
    if len(references) > MAX_REFERENCES or any(reference.shape != shape for reference in references):
        found = [reference.shape for reference in references]
        raise ValueError(f"expected at most {MAX_REFERENCES} references of shape {shape}, found {found}")
    return [_fold(reference, (folded[0], folded[1], folded[2])) for reference in references]


@cache
def index_of_kind() -> NDArray[np.uint8]:
    """[KINDS, 16]: the table index of a kind, by the 16ths from the prediction to the nearest integer, 0 .. 8."""
    kind = np.arange(KINDS)[:, None]
    fraction = np.minimum(np.arange(UNIT) * FRACTIONS // (UNIT // 2 + 1), FRACTIONS - 1)
    fine = FIRST_FINE + (kind - FIRST_FINE) * FRACTIONS + fraction
    coarse = kind - FIRST_COARSE + FIRST_COARSE_ROW
    spiky = kind + 0 * fraction
    index = np.where(kind < FIRST_FINE, spiky, np.where(kind < FIRST_COARSE, fine, coarse))
    return index.astype(np.uint8)


def index_of_context(kinds: NDArray[np.intp]) -> NDArray[np.uint16]:
    """[VARIANTS * BUCKETS * 16]: variant * 256 + the table index of each context; buckets without a kind get that of
    the last one."""
    padded = np.pad(kinds, (0, BUCKETS - kinds.size), mode="edge")
    index = index_of_kind()[padded].reshape(-1).astype(np.uint16)
    return (np.arange(VARIANTS, dtype=np.uint16)[:, None] * np.uint16(256) + index).reshape(-1)


@cache
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
class Side:
    """Side information of a slab."""

    low: int  # the least value
    span: int  # the largest less the least
    palette: NDArray[np.int32] | None = None  # the values that occur, less the least; their ranks are coded
    border: int = 0  # value beyond the slab
    filters: int = FILTERS  # of the rows
    snap: bool = False  # predictions within the bound of the least value are taken for it
    tilts: NDArray[np.int32] = field(default_factory=lambda: NO_TILTS)  # of the tables, in eighths of an octave [LEVELS, NODES]
    predictor: Predictor = NO_PREDICTOR
    kinds: NDArray[np.intp] = field(default_factory=lambda: np.zeros(1, np.intp))  # of tables, by bucket

    @property
    def largest(self) -> int:
        """Largest value or rank that is coded."""
        return self.span if self.palette is None else self.palette.size - 1

    def ranks(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        """Any values, such as a reference's -> the nearest that are coded, or with a palette the next above."""
        inside = np.clip(values.astype(np.int64) - self.low, 0, self.span).astype(np.int32)
        if self.palette is None:
            return inside
        return np.minimum(self.palette.searchsorted(inside), self.largest).astype(np.int32)

    def values(self, ranks: NDArray[np.int32]) -> NDArray[np.int32]:
        """The inverse, for what is coded."""
        return (ranks if self.palette is None else self.palette[ranks]) + np.int32(self.low)


def _side_information(coder: SymbolCoder, shape: tuple[int, ...], side: Side | None, references: int) -> Side:
    """Codes `side`, or decodes it if it is None, for a slab of the shape with so many references."""
    numbers = _Numbers(coder)
    low = numbers.signed(None if side is None else side.low)
    span = min(numbers.unsigned(None if side is None else side.span), MAX_SPAN)
    if span == 0:
        return Side(low, span)
    palette = _palette(numbers, math.prod(shape), span, side)
    largest = span if palette is None else palette.size - 1
    border = min(numbers.unsigned(None if side is None else side.border), largest)
    options = numbers.unsigned(None if side is None else side.filters + 4 * side.snap + 8 * bool(side.tilts.any()))
    tilts = _tilts(numbers, None if side is None else side.tilts) if options & 8 else NO_TILTS
    predictor = _predictor(numbers, shape[0], None if side is None else side.predictor, references)
    kinds = _kinds(numbers, None if side is None else side.kinds)
    return Side(low, span, palette, border, min(options & 3, LONG_FILTERS), bool(options & 4), tilts, predictor, kinds)


def _palette(numbers: _Numbers, voxels: int, span: int, side: Side | None) -> NDArray[np.int32] | None:
    given = None if side is None else side.palette
    size = numbers.unsigned(None if side is None else 0 if given is None else given.size)
    size = min(size, voxels, span + 1)
    if size < 2:
        return None
    gaps = numbers.many(size - 1, None if given is None else np.diff(given) - 1)
    palette = np.concatenate(([0], np.cumsum(np.clip(gaps, 0, span) + 1)))
    return np.minimum(palette, span).astype(np.int32)


def _predictor(numbers: _Numbers, slices: int, given: Predictor | None, references: int) -> Predictor:
    """0 for the shipped one; else 1, a bit for each candidate, then the coefficients stage by stage."""
    default = shipped().predictor
    if numbers.unsigned(None if given is None else int(given is not default)) == 0:
        return default
    beside = [(r, tap) for r in range(references) for tap in REFERENCE_CANDIDATES]
    mask = None
    if given is not None:
        there = [tap in given.taps for tap in CANDIDATES] + [tap in given.reference_taps for tap in beside]
        mask = np.packbits(there, bitorder="little")
    count = len(CANDIDATES) + len(beside)
    mask = numbers.raw(-(-count // 8), mask).astype(np.uint8)
    chosen = np.unpackbits(mask, count=count, bitorder="little")
    taps = tuple(tap for tap, taken in zip(CANDIDATES, chosen, strict=False) if taken)
    reference_taps = tuple(tap for tap, taken in zip(beside, chosen[len(CANDIDATES) :], strict=True) if taken)
    coefficients = np.zeros((STAGES, len(taps) + len(reference_taps)), np.int32)
    needed = np.array([-t for t, _, _ in taps] + [0] * len(reference_taps))
    for stage in range(min(slices, STAGES)):
        there_now = needed <= stage
        size = int(there_now.sum())
        if size:
            sent = numbers.many(size, None if given is None else given.coefficients[stage, there_now])
            coefficients[stage, there_now] = np.clip(sent, -(1 << 15), 1 << 15)
    coefficients[slices:] = coefficients[min(slices, STAGES) - 1]
    return Predictor(taps, coefficients, reference_taps)


def _kinds(numbers: _Numbers, given: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """Each as its difference from one more than the one before."""
    count = max(1, min(numbers.unsigned(None if given is None else given.size), BUCKETS))
    steps = None if given is None else np.diff(given, prepend=-1) - 1
    steps = np.clip(numbers.many(count, steps, STEP_KIND), -KINDS, KINDS)
    kinds: NDArray[np.intp] = np.clip(np.cumsum(steps + 1) - 1, 0, KINDS - 1).astype(np.intp)
    return kinds


def _tilts(numbers: _Numbers, given: NDArray[np.int32] | None) -> NDArray[np.int32]:
    """Each as its difference from the one before, level by level."""
    steps = None if given is None else np.diff(given, axis=1, prepend=0).reshape(-1)
    coded = np.clip(numbers.many(LEVELS * NODES, steps), -1024, 1024).reshape(LEVELS, NODES)
    most = 8 * TILT_OCTAVES
    return np.clip(np.cumsum(coded, axis=1), -most, most).astype(np.int32)


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
        coded: NDArray[np.int64] = self._coder.code("voxel", index, None if given is None else given.astype(np.int64) + half)
        numbers: NDArray[np.int64] = coded[0] - half[0]
        return numbers


def kind_for(values: NDArray[Any]) -> int:
    """The kind whose scale is that of the values."""
    scale = max(1.2 * float(np.abs(values).mean()), 0.25)
    return min(FIRST_FINE + round(OCTAVE * (math.log2(scale) + 3)), KINDS - 1)
