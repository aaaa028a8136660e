"""What a slab of the predictive coder sends before its voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mricodec.bitstream.symbols import SymbolCoder, unzigzag, zigzag

from .fronts import (
    BUCKETS,
    CANDIDATES,
    FILTERS,
    FIRST_FINE,
    KINDS,
    LEVELS,
    LONG_FILTERS,
    NODES,
    OCTAVE,
    REFERENCE_CANDIDATES,
    STAGES,
    Predictor,
    shipped,
)
from .tables import TILT_OCTAVES, _half_of_index, index_of_kind

MAX_SPAN = (1 << 24) - 1


STEP_KIND = FIRST_FINE + 3 * OCTAVE  # of differences between kinds: a scale of 1
NO_TILTS = np.zeros((LEVELS, NODES), np.int32)
NO_PREDICTOR = Predictor((), np.zeros((STAGES, 0), np.int32))


@dataclass(frozen=True, eq=False)
class Side:
    """Side information of a slab."""

    low: int  # the least value
    span: int  # the largest less the least
    palette: NDArray[np.int32] | None = (
        None  # the values that occur, less the least; their ranks are coded
    )
    border: int = 0  # value beyond the slab
    filters: int = FILTERS  # of the rows
    snap: bool = False  # predictions within the bound of the least value are taken for it
    tilts: NDArray[np.int32] = field(
        default_factory=lambda: NO_TILTS
    )  # of the tables, in eighths of an octave [LEVELS, NODES]
    predictor: Predictor = NO_PREDICTOR
    kinds: NDArray[np.intp] = field(
        default_factory=lambda: np.zeros(1, np.intp)
    )  # of tables, by bucket

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


def _side_information(
    coder: SymbolCoder, shape: tuple[int, ...], side: Side | None, references: int
) -> Side:
    """Codes `side`, or decodes it if it is None, for a slab of the shape with so many references."""
    numbers = _Numbers(coder)
    low = numbers.signed(None if side is None else side.low)
    span = min(numbers.unsigned(None if side is None else side.span), MAX_SPAN)
    if span == 0:
        return Side(low, span)
    palette = _palette(numbers, math.prod(shape), span, side)
    largest = span if palette is None else palette.size - 1
    border = min(numbers.unsigned(None if side is None else side.border), largest)
    options = numbers.unsigned(
        None if side is None else side.filters + 4 * side.snap + 8 * bool(side.tilts.any())
    )
    tilts = _tilts(numbers, None if side is None else side.tilts) if options & 8 else NO_TILTS
    predictor = _predictor(numbers, shape[0], None if side is None else side.predictor, references)
    kinds = _kinds(numbers, None if side is None else side.kinds)
    return Side(
        low,
        span,
        palette,
        border,
        min(options & 3, LONG_FILTERS),
        bool(options & 4),
        tilts,
        predictor,
        kinds,
    )


def _palette(
    numbers: _Numbers, voxels: int, span: int, side: Side | None
) -> NDArray[np.int32] | None:
    given = None if side is None else side.palette
    size = numbers.unsigned(None if side is None else 0 if given is None else given.size)
    size = min(size, voxels, span + 1)
    if size < 2:
        return None
    gaps = numbers.many(size - 1, None if given is None else np.diff(given) - 1)
    palette = np.concatenate(([0], np.cumsum(np.clip(gaps, 0, span) + 1)))
    return np.minimum(palette, span).astype(np.int32)


def _predictor(
    numbers: _Numbers, slices: int, given: Predictor | None, references: int
) -> Predictor:
    """0 for the shipped one; else 1, a bit for each candidate, then the coefficients stage by stage."""
    default = shipped().predictor
    if numbers.unsigned(None if given is None else int(given is not default)) == 0:
        return default
    beside = [(r, tap) for r in range(references) for tap in REFERENCE_CANDIDATES]
    mask = None
    if given is not None:
        there = [tap in given.taps for tap in CANDIDATES] + [
            tap in given.reference_taps for tap in beside
        ]
        mask = np.packbits(there, bitorder="little")
    count = len(CANDIDATES) + len(beside)
    mask = numbers.raw(-(-count // 8), mask).astype(np.uint8)
    chosen = np.unpackbits(mask, count=count, bitorder="little")
    taps = tuple(tap for tap, taken in zip(CANDIDATES, chosen, strict=False) if taken)
    reference_taps = tuple(
        tap for tap, taken in zip(beside, chosen[len(CANDIDATES) :], strict=True) if taken
    )
    coefficients = np.zeros((STAGES, len(taps) + len(reference_taps)), np.int32)
    needed = np.array([-t for t, _, _ in taps] + [0] * len(reference_taps))
    for stage in range(min(slices, STAGES)):
        there_now = needed <= stage
        size = int(there_now.sum())
        if size:
            sent = numbers.many(
                size, None if given is None else given.coefficients[stage, there_now]
            )
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
        coded: NDArray[np.int64] = self._coder.code(
            shipped().tables["byte"], np.zeros((1, n), np.uint8), values
        )[0]
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
        value = unzigzag(self.unsigned(None if given is None else zigzag(given)))
        return max(-(1 << 31), min(value, (1 << 31) - 1))

    def many(
        self, n: int, given: NDArray[Any] | None, kind: int | None = None
    ) -> NDArray[np.int64]:
        """n numbers with the tables of a kind, which is sent first unless it is told."""
        if kind is None:
            kind = int(self.raw(1, None if given is None else np.array([kind_for(given)]))[0])
        index = np.full((1, n), index_of_kind()[min(kind, KINDS - 1), 0])
        half = _half_of_index()[index]
        coded: NDArray[np.int64] = self._coder.code(
            shipped().tables["voxel"],
            index,
            None if given is None else given.astype(np.int64) + half,
        )
        numbers: NDArray[np.int64] = coded[0] - half[0]
        return numbers


def kind_for(values: NDArray[Any]) -> int:
    """The kind whose scale is that of the values."""
    scale = max(1.2 * float(np.abs(values).mean()), 0.25)
    return min(FIRST_FINE + round(OCTAVE * (math.log2(scale) + 3)), KINDS - 1)
